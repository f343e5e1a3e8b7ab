import X86

/// How a vCPU translates linear addresses. Intel SDM volume 3, 4.1.1.
public enum PagingMode: Hashable, Sendable {
    /// Paging is off: linear addresses are physical ones, of 32 bits.
    case none
    /// 32-bit paging; `largePages` is CR4.PSE, without which PS in a directory entry is ignored.
    case legacy32(largePages: Bool)
    /// PAE paging.
    case pae
    /// 4-level paging, 48-bit linear addresses.
    case fourLevel
    /// 5-level paging, 57-bit linear addresses.
    case fiveLevel

    /// The mode that the control registers select.
    public init(_ control: ControlRegisters) {
        if !control.pagingEnabled {
            self = .none
        } else if control.longModeActive {
            self = control.fiveLevelPaging ? .fiveLevel : .fourLevel
        } else if control.physicalAddressExtension {
            self = .pae
        } else {
            self = .legacy32(largePages: control.cr4 & (1 << 4) != 0)
        }
    }

    /// The bits of a linear address that are translated.
    @inlinable public var linearAddressBits: UInt64 {
        switch self {
        case .none, .legacy32, .pae: 32
        case .fourLevel: 48
        case .fiveLevel: 57
        }
    }

    /// Whether entries have a bit that forbids execution, for systems that enable it.
    @inlinable public var entriesCanForbidExecution: Bool {
        switch self {
        case .none, .legacy32: false
        case .pae, .fourLevel, .fiveLevel: true
        }
    }

    /// How wide a pointer of the system that uses this mode is, in bytes: 8 in long mode, else 4.
    @inlinable public var pointerSize: UInt64 {
        switch self {
        case .none, .legacy32, .pae: 4
        case .fourLevel, .fiveLevel: 8
        }
    }

    /// Whether an address lies in the kernel's half of the address space: in its upper half, which is Windows'
    /// own. With 32 bits and `/3GB` (Microsoft, "4-Gigabyte Tuning") the kernel has a quarter of it only.
    @inlinable public func isInKernelHalf(_ address: GuestVirtualAddress) -> Bool {
        switch self {
        case .none, .legacy32, .pae: address.rawValue >> 31 == 1
        case .fourLevel, .fiveLevel: address.rawValue >> 63 == 1
        }
    }

    /// The levels of tables down to pages of 4 KiB; 0 without paging. Intel SDM volume 3, 4.3 to 4.5.
    @inlinable public var levels: Int {
        switch self {
        case .none: 0
        case .legacy32: 2
        case .pae: 3
        case .fourLevel: 4
        case .fiveLevel: 5
        }
    }

    /// How wide an entry of a table is, in bytes.
    @inlinable public var entrySize: Int { if case .legacy32 = self { 4 } else { 8 } }

    /// The bits of an address that choose an entry of a table below the root.
    @inlinable public var indexBits: Int { if case .legacy32 = self { 10 } else { 9 } }

    /// The entries of the root that are for one half of the address space.
    @inlinable public var rootEntriesOfHalf: Int {
        Int(truncatingIfNeeded: (UInt64(1) &<< (linearAddressBits &- 1)) / span(ofLevel: levels))
    }

    /// How much of the address space one entry of a level maps, in bytes: 4 KiB at level 1, then 512 times as much
    /// with each level, 1024 times in 32-bit paging. Intel SDM volume 3, 4.3 to 4.5.
    @inlinable public func span(ofLevel level: Int) -> UInt64 {
        4096 &<< UInt64(truncatingIfNeeded: indexBits &* (max(1, min(level, 5)) &- 1))
    }

    /// The part of CR3 (and of a KPROCESS's DirectoryTableBase) that is the root table's address: the rest are flags
    /// or a PCID. With PAE the table of 32 bytes may lie anywhere in a page. Intel SDM volume 3, 4.3 to 4.5.
    @inlinable public func rootAddress(_ cr3: UInt64) -> UInt64 {
        switch self {
        case .none, .legacy32: cr3 & 0xffff_f000
        case .pae: cr3 & 0xffff_ffe0
        case .fourLevel, .fiveLevel: cr3 & PageTableEntry.addressMask
        }
    }

    /// Whether an address can be translated at all: within 32 bits, or canonical (SDM volume 1, 3.3.7.1).
    @inlinable public func isCanonical(_ address: GuestVirtualAddress) -> Bool {
        switch self {
        case .none, .legacy32, .pae:
            return address.rawValue >> 32 == 0
        case .fourLevel, .fiveLevel:
            let unused = 64 &- linearAddressBits
            let extended = (Int64(bitPattern: address.rawValue) &<< Int64(unused)) &>> Int64(unused)
            return UInt64(bitPattern: extended) == address.rawValue
        }
    }

    /// The first address after the part of the address space that `address` is in, modulo 2^64.
    @inlinable func end(of address: GuestVirtualAddress) -> UInt64 {
        switch self {
        case .none, .legacy32, .pae: 1 << 32
        case .fourLevel, .fiveLevel: address.rawValue >> 63 == 0 ? 1 << (linearAddressBits &- 1) : 0
        }
    }
}

/// One address space of the guest: the root of its page tables and how they are read.
public struct AddressSpace: Hashable, Sendable {
    /// CR3 as the vCPU holds it: the table's address, and flags or a PCID in the low bits.
    public var root: UInt64
    public var mode: PagingMode
    /// EFER.NXE: bit 63 of an entry forbids execution; without it that bit is reserved.
    public var executeDisableEnabled: Bool

    @inlinable public init(root cr3: UInt64, mode: PagingMode, executeDisableEnabled: Bool = true) {
        root = cr3
        self.mode = mode
        self.executeDisableEnabled = executeDisableEnabled
    }

    /// The address space that a vCPU is in.
    public init(_ control: ControlRegisters) {
        self.init(
            root: control.cr3, mode: PagingMode(control), executeDisableEnabled: control.efer & (1 << 11) != 0)
    }

    /// The same way of translating with another root.
    @inlinable public func with(root cr3: UInt64) -> Self {
        Self(root: cr3, mode: mode, executeDisableEnabled: executeDisableEnabled)
    }
}
