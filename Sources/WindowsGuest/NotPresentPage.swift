import GuestMemory

/// What Windows keeps in a last-level page-table entry whose present bit is clear.
///
/// The layouts are those of the public structures `_MMPTE_SOFTWARE`, `_MMPTE_TRANSITION` and
/// `_MMPTE_PROTOTYPE` (Microsoft's public symbols): in all of them prototype is bit 10, transition bit 11.
public enum NotPresentPage: Hashable, Sendable {
    /// The page is on the standby or modified list, its contents still in RAM at this address. Kernels with
    /// the L1TF mitigation may have set one bit above all RAM in it; see `KernelMemory`.
    case transition(GuestPhysicalAddress)
    /// The page is shared, and the entry at this address says where it is.
    case prototype(GuestVirtualAddress)
    /// The page is shared, and the entry that says where it is lies so many bytes into paged pool (32-bit paging,
    /// whose entries have no room for an address).
    case prototypeInPool(offset: UInt32)
    /// Shared memory whose prototype entry is to be looked up in the process's VAD tree.
    case addressDescriptor
    /// The page's contents are in a paging file, `offset` pages from its start.
    case pagefile(number: UInt8, offset: UInt32)
    /// A page of zeroes that was not touched yet.
    case demandZero
    /// The entry is empty.
    case unmapped

    /// Where an entry keeps the number of its paging file.
    public enum Layout: Sendable {
        /// Bits 4 to 1: Windows 7 to Windows 10 version 1709.
        case untilVersion1709
        /// Bits 15 to 12: since Windows 10 version 1803, builds 17134 and later.
        case sinceVersion1803

        public init(build: UInt32) { self = build >= 17134 ? .sinceVersion1803 : .untilVersion1709 }
    }

    /// - Parameters:
    ///   - entry: an entry of the last level with bit 0 clear.
    ///   - mode: how the system translates addresses, which says how wide entries are.
    public init(entry: UInt64, layout: Layout = .sinceVersion1803, mode: PagingMode = .fourLevel) {
        switch mode {
        case .none, .legacy32: self.init(entry32: UInt32(truncatingIfNeeded: entry))
        case .pae: self.init(entryPAE: entry, layout: layout)
        case .fourLevel, .fiveLevel: self.init(entry64: entry, layout: layout)
        }
    }

    /// x86 without PAE: the page's number, or the paging file's, is in bits 31 to 12.
    private init(entry32 entry: UInt32) {
        if entry == 0 {
            self = .unmapped
        } else if entry & (1 << 10) != 0 {
            // ProtoAddressHigh, bits 31 to 11, counts 512 bytes; ProtoAddressLow, bits 7 to 1, words.
            self = .prototypeInPool(offset: (entry >> 11) << 9 | (entry >> 1 & 0x7f) << 2)
        } else if entry & (1 << 11) != 0 {
            self = .transition(GuestPhysicalAddress(UInt64(entry & 0xffff_f000)))
        } else if entry >> 12 != 0 {
            self = .pagefile(number: UInt8(entry >> 1 & 15), offset: entry >> 12)
        } else {
            self = .demandZero
        }
    }

    /// x86 with PAE: a prototype's address is the upper half.
    private init(entryPAE entry: UInt64, layout: Layout) {
        if entry & (1 << 10) != 0 {
            // MI_PTE_LOOKUP_NEEDED, all ones.
            let address = entry >> 32
            self = address == 0xffff_ffff ? .addressDescriptor : .prototype(GuestVirtualAddress(address))
        } else {
            self.init(entry64: entry, layout: layout)
        }
    }

    private init(entry64 entry: UInt64, layout: Layout) {
        let high = UInt32(truncatingIfNeeded: entry >> 32)
        if entry == 0 {
            self = .unmapped
        } else if entry & (1 << 10) != 0 {
            // ProtoAddress: bits 63 to 16, sign-extended.
            let address = UInt64(bitPattern: Int64(bitPattern: entry) >> 16)
            // MI_PTE_LOOKUP_NEEDED, 0xFFFFFFFF0000 in the 48 bits.
            self = address == 0xffff_ffff_ffff_0000 ? .addressDescriptor : .prototype(GuestVirtualAddress(address))
        } else if entry & (1 << 11) != 0 {
            self = .transition(GuestPhysicalAddress(entry & 0x000f_ffff_ffff_f000))
        } else if high != 0 {
            let number = layout == .sinceVersion1803 ? (entry >> 12) & 15 : (entry >> 1) & 15
            self = .pagefile(number: UInt8(number), offset: high)
        } else {
            self = .demandZero
        }
    }

    /// The state named by a failed read, where the last level's entry is the reason.
    public init?(_ error: MemoryError, layout: Layout = .sinceVersion1803, mode: PagingMode = .fourLevel) {
        guard case .notPresent(_, let entry, level: 1) = error else { return nil }
        self.init(entry: entry, layout: layout, mode: mode)
    }
}
