import GuestMemory
import HypervisorInterface
import Protections
import TestSupport
import WindowsGuest

/// A synthetic guest and its protections.
final class ProtectedGuest {
    /// A driver whose image can be put on the list of modules.
    static let driverBase: UInt64 = 0xffff_f806_5000_0000
    static let driverEntry: UInt64 = 0xffff_b800_0003_0000

    let guest: FakeGuest
    let kernel: WindowsKernel
    let protections: ProtectionSet
    /// What Vigil says that it has in the guest.
    var patches: [CodePatch.Place] {
        get { box.patches }
        set { box.patches = newValue }
    }

    private final class Box { var patches: [CodePatch.Place] = [] }
    private let box = Box()

    init(vcpus: Int = 1) throws {
        guest = FakeGuest(vcpus: vcpus)
        kernel = try guest.locateKernel()
        protections = ProtectionSet(
            guest.machine, kernel: kernel, offsets: try KernelOffsets(of: kernel),
            ownPatches: { [box] in box.patches })
    }

    var synthetic: SyntheticKernel { guest.kernel }
    func address(_ symbol: String) -> UInt64 { synthetic.address(symbol) }

    /// Where a kernel address lies in RAM.
    func physical(_ address: UInt64) throws -> GuestPhysicalAddress {
        try kernel.memory.translate(GuestVirtualAddress(address)).physical
    }

    /// Maps the page of a kernel address to a new frame.
    /// - Returns: the frame.
    @discardableResult
    func remap(_ address: UInt64, copying: Bool = true) throws -> UInt64 {
        let old = try physical(address & ~0xfff)
        let frame = guest.ram.allocate()
        if copying {
            for offset in stride(from: UInt64(0), to: 4096, by: 8) {
                guest.ram.store(guest.ram.load(UInt64.self, at: old.rawValue + offset), at: frame + offset)
            }
        }
        let entry = synthetic.entry(of: address)
        synthetic.setEntry(of: address, to: entry & ~0x000f_ffff_ffff_f000 | frame)
        return frame
    }

    /// Loads a driver: its image, and an entry on the list that `head` heads.
    func loadDriver(
        name: String = "driver.sys", base: UInt64 = driverBase, entry: UInt64 = driverEntry, stamp: UInt32 = 1
    ) {
        var image = SyntheticImage(
            name: name, size: 0x3000,
            sections: [
                .init(
                    name: ".text", rva: 0x1000, virtualSize: 0x800, characteristics: SyntheticImage.Section.code,
                    contents: [0x90, 0xc3]),
                .init(
                    name: ".data", rva: 0x2000, virtualSize: 0x1000, characteristics: SyntheticImage.Section.data),
            ], exportRVA: 0x2000)
        image.timeDateStamp = stamp
        synthetic.tables.mapNew(base, pages: 3, .kernelCode)
        synthetic.write(image.bytes(), at: base)
        synthetic.tables.mapNew(entry & ~0xfff, .kernelData)
        list(entry: entry, base: base, name: name)
    }

    /// Puts an entry behind the head of the list of modules.
    func list(entry: UInt64, base: UInt64, name: String) {
        let head = address("PsLoadedModuleList")
        let units = Array(name.utf16)
        synthetic.write(entry, at: head)
        synthetic.write(head, at: entry)
        synthetic.write(base, at: entry + 0x30)
        synthetic.write(UInt16(units.count * 2), at: entry + 0x58)
        synthetic.write(entry + 0x100, at: entry + 0x60)
        for (index, unit) in units.enumerated() { synthetic.write(unit, at: entry + 0x100 + UInt64(index) * 2) }
    }

    func unlist() {
        let head = address("PsLoadedModuleList")
        synthetic.write(head, at: head)
    }

    /// The tables of the process that the tests protect.
    var process: SyntheticKernel.Process { synthetic.processes[2] }
}
