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
    var is64Bit: Bool { pagingMode.pointerSize == 8 }

    /// The entries of the root that are for the upper half of the address space.
    var upperHalf: Range<Int> { pagingMode.rootEntriesOfHalf..<2 * pagingMode.rootEntriesOfHalf }

    /// The bits of all addresses in the upper half above those that are translated.
    var extension64: UInt64 { is64Bit ? UInt64.max << pagingMode.linearAddressBits : 0 }

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
