import GuestMemory
import X86

/// A way of paging whose roots memory is searched for: what their entries are, and which of them are the kernel's.
enum RootFormat: CaseIterable {
    case fourLevel, fiveLevel, pae, legacy

    var pagingMode: PagingMode {
        switch self {
        case .fourLevel: .fourLevel
        case .fiveLevel: .fiveLevel
        case .pae: .pae
        case .legacy: .legacy32(largePages: true)
        }
    }

    /// For 64-bit systems, whose interrupt tables have gates of 16 bytes.
    var is64Bit: Bool { self == .fourLevel || self == .fiveLevel }

    /// Down to pages of 4 KiB.
    var levels: Int {
        switch self {
        case .fourLevel: 4
        case .fiveLevel: 5
        case .pae: 3
        case .legacy: 2
        }
    }

    /// In bytes.
    var entrySize: Int { self == .legacy ? 4 : 8 }

    /// The bits of an address that choose an entry of a table.
    var indexBits: Int { self == .legacy ? 10 : 9 }

    /// The entries of the root that are for the upper half of the address space.
    var upperHalf: Range<Int> {
        switch self {
        case .fourLevel, .fiveLevel: 256..<512
        case .pae: 2..<4
        case .legacy: 512..<1024
        }
    }

    /// What an entry of a table of a level says an address has below the table's own bits.
    func offset(of index: Int, level: Int) -> UInt64 { UInt64(index) << UInt64(12 + indexBits * (level - 1)) }

    /// The bits of all addresses in the upper half above those that are translated.
    var extension64: UInt64 {
        switch self {
        case .fourLevel: 0xffff << 48
        case .fiveLevel: 0xfe << 56
        case .pae, .legacy: 0
        }
    }

    /// What a vCPU's registers are that uses a root of this kind.
    func control(root: UInt64) -> ControlRegisters {
        // PE and PG; PAE, PSE, LA57; long mode, or execution that entries can forbid.
        let paging: UInt64 = 1 << 31 | 1
        return switch self {
        case .fourLevel: ControlRegisters(cr0: paging, cr3: root, cr4: 1 << 5, efer: QEMUProcessorState.longMode)
        case .fiveLevel:
            ControlRegisters(cr0: paging, cr3: root, cr4: 1 << 5 | 1 << 12, efer: QEMUProcessorState.longMode)
        case .pae: ControlRegisters(cr0: paging, cr3: root, cr4: 1 << 5, efer: QEMUProcessorState.executeDisable)
        case .legacy: ControlRegisters(cr0: paging, cr3: root, cr4: 1 << 4, efer: 0)
        }
    }
}
