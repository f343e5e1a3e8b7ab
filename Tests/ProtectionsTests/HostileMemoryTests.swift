import GuestMemory
import HypervisorInterface
import Protections
import TestSupport
import Testing
import WindowsGuest

/// RAM that changes while it is read: what stands there is another thing at every second read of it.
private final class FlickeringRAM: PhysicalMemoryReader {
    let ram: SyntheticRAM
    /// Pages that read as ones, and how often still.
    var flickers: [UInt64: Int] = [:]
    var isGone = false

    init(_ ram: SyntheticRAM) { self.ram = ram }

    func read(at address: GuestPhysicalAddress, into buffer: UnsafeMutableRawBufferPointer) throws(MemoryError) {
        if isGone { throw .unreachable(address, errno: 3) }
        let page = address.rawValue & ~0xfff
        if let left = flickers[page], left > 0, buffer.count >= 4096 {
            flickers[page] = left - 1
            buffer.initializeMemory(as: UInt8.self, repeating: 0xff)
            return
        }
        try ram.physical.read(at: address, into: buffer)
    }
}

@Suite("Protections of a hostile guest") struct HostileMemoryTests {
    @Test("A difference that is gone at the second look is none, one that stays is one; RAM out of reach is an error")
    func secondLook() throws {
        let guest = FakeGuest()
        let source = FlickeringRAM(guest.ram)
        let memory = PhysicalMemory(reader: source, regions: guest.ram.physical.regions)
        let kernel = try KernelLocator(physical: memory).locate(guest.processorTables)
        let protections = ProtectionSet(guest.machine, kernel: kernel, offsets: try KernelOffsets(of: kernel))
        try protections.arm([.kernelCode])
        let page = try kernel.memory.translate(kernel.base + 0x1000).physical.rawValue
        // A look reads the page to compare it, and once more to say what differs.
        for count in [1, 2] {
            source.flickers[page] = count
            #expect(try protections.check() == [], "\(count)")
            source.flickers = [:]
        }
        source.flickers[page] = .max
        #expect(try protections.check().count == 1)
        source.isGone = true
        #expect(throws: ProtectionError.self) { try protections.check() }
    }

    @Test("Garbage anywhere in RAM is a violation or none, or an error, never a trap", arguments: UInt64(1)...6)
    func garbage(_ seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let guest = try ProtectedGuest(vcpus: 2)
        guest.loadDriver()
        try guest.protections.arm(Set(ProtectionKind.allCases), processes: ["csrss.exe", "smss.exe"])
        let used = guest.guest.ram.allocate()
        let interesting: [UInt64] = [0, 1, 7, 0xfff, 1 << 47, 0xffff_8000_0000_0000, .max, .max - 7]
        for _ in 0..<100 {
            var saved: [(UInt64, UInt64)] = []
            for _ in 0..<16 {
                let address = UInt64.random(in: 512..<used / 8, using: &generator) * 8
                saved.append((address, guest.guest.ram.load(UInt64.self, at: address)))
                let isWild = Bool.random(using: &generator)
                let value = isWild ? generator.next() : interesting.randomElement(using: &generator) ?? 0
                guest.guest.ram.store(value, at: address)
            }
            _ = try? guest.protections.check(budget: Bool.random(using: &generator) ? nil : 1 << 16)
            _ = try? guest.protections.check(page: GuestVirtualAddress(generator.next()))
            _ = guest.protections.watchedPages
            if Int.random(in: 0..<8, using: &generator) == 0 {
                let kind = ProtectionKind.allCases.randomElement(using: &generator) ?? .kernelCode
                guest.protections.disarm([kind])
                _ = try? guest.protections.arm([kind], processes: ["csrss.exe"])
            }
            for (address, value) in saved.reversed() { guest.guest.ram.store(value, at: address) }
        }
    }
}
