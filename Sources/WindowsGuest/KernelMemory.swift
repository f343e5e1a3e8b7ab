import GuestMemory
import X86

/// An address space of a Windows guest, read as Windows' own memory manager would find its pages.
///
/// A page whose entry is not present may still be in RAM: in transition, or shared and found through a
/// prototype entry. Those are read. Anything else that is not present throws `MemoryError.notPresent`, which
/// means "paged out: not known yet", never "not there".
public struct KernelMemory: TranslatedMemory {
    /// The address space as the processor sees it.
    public let hardware: VirtualMemory

    @inlinable public init(_ hardware: VirtualMemory) { self.hardware = hardware }

    @inlinable public var physical: PhysicalMemory { hardware.physical }
    @inlinable public var space: AddressSpace { hardware.space }
    @inlinable public var pagingMode: PagingMode { hardware.space.mode }

    /// Where `address` is now. A page that only Windows knows to be in RAM has no rights, and an entry
    /// whose bit 0 is clear.
    @inlinable public func translate(_ address: GuestVirtualAddress) throws(MemoryError) -> Translation {
        do throws(MemoryError) {
            return try hardware.translate(address)
        } catch {
            return try resolve(address, after: error)
        }
    }

    /// The same guest seen through the page tables of another process.
    public func inProcess(directoryTableBase: UInt64) -> Self {
        Self(VirtualMemory(physical: physical, space: space.with(root: directoryTableBase)))
    }

    @usableFromInline func resolve(
        _ address: GuestVirtualAddress, after error: MemoryError
    ) throws(MemoryError) -> Translation {
        guard case .notPresent(_, let entry, level: 1) = error else { throw error }
        var shared: UInt64?
        switch NotPresentPage(entry: entry, mode: pagingMode) {
        case .transition(let page):
            return translation(of: address, page: page, entry: entry)
        case .prototype(let location):
            // Prototype entries are in paged pool: one that is itself paged out is not followed further.
            guard pagingMode.isInKernelHalf(location) else { throw error }
            shared = try? load(atPrototype: location)
        default:
            break
        }
        guard let shared else { throw error }
        if shared & 1 != 0 {
            return translation(
                of: address, page: GuestPhysicalAddress(shared & PageTableEntry.addressMask), entry: entry)
        }
        // In a prototype entry bit 10 marks a page that is still in its file.
        if case .transition(let page) = NotPresentPage(entry: shared, mode: pagingMode) {
            return translation(of: address, page: page, entry: entry)
        }
        throw error
    }

    private func load(atPrototype location: GuestVirtualAddress) throws(MemoryError) -> UInt64 {
        try hardware.load(UInt64.self, at: location)
    }

    private func translation(
        of address: GuestVirtualAddress, page: GuestPhysicalAddress, entry: UInt64
    ) -> Translation {
        Translation(
            physical: inRAM(page) + (address.rawValue & 0xfff), pageSize: 4096, rights: [], entry: entry)
    }

    /// With the L1TF mitigation Windows sets a high physical-address bit in entries that are not present, so
    /// that no speculative read through them hits a cache (Microsoft, ADV180018). Such a bit lies above all
    /// RAM: an address that is none is tried without the bits above RAM's end.
    private func inRAM(_ page: GuestPhysicalAddress) -> GuestPhysicalAddress {
        guard let last = physical.regions.last else { return page }
        let end = last.base.rawValue &+ last.length
        guard page.rawValue >= end, end > 1 else { return page }
        let bits = 64 - (end - 1).leadingZeroBitCount
        return GuestPhysicalAddress(page.rawValue & ((1 << UInt64(bits)) &- 1))
    }
}
