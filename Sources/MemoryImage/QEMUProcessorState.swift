import GuestMemory
import HypervisorInterface
import X86

/// What QEMU's own note says of a vCPU: `QEMUCPUState` in QEMU's target/i386/arch_dump.c. The same for vCPUs
/// and dumps of 32 and of 64 bits.
struct QEMUProcessorState: Equatable {
    /// The note's name, and its type.
    static let noteName = Array("QEMU\0".utf8)
    static let noteType: UInt32 = 0
    /// To the end of the control registers, in bytes. kernel_gs_base was added behind them later.
    static let leastSize = 432
    /// More vCPUs than any QEMU has.
    static let maximumCount = 4096

    private static let version: UInt32 = 1
    /// Six segments, LDT and TR of 24 bytes each: selector, limit, flags, padding, base.
    private static let codeSegment = 152
    private static let gdt = 344
    private static let idt = 368
    private static let controlRegisters = 392

    var codeSelector: UInt16
    var gdtBase: UInt64
    var gdtLimit: UInt32
    var idtBase: UInt64
    var idtLimit: UInt32
    var cr0: UInt64
    var cr2: UInt64
    var cr3: UInt64
    var cr4: UInt64

    /// - Returns: nil where that is no such state, or of another version.
    init?(_ contents: ArraySlice<UInt8>) {
        let bytes = Array(contents)
        guard bytes.integer(UInt32.self, at: 0) == Self.version,
            let size = bytes.integer(UInt32.self, at: 4), size >= UInt32(Self.leastSize), UInt64(size) <= bytes.count,
            let selector = bytes.integer(UInt32.self, at: Self.codeSegment),
            let gdtLimit = bytes.integer(UInt32.self, at: Self.gdt + 4),
            let gdtBase = bytes.integer(UInt64.self, at: Self.gdt + 16),
            let idtLimit = bytes.integer(UInt32.self, at: Self.idt + 4),
            let idtBase = bytes.integer(UInt64.self, at: Self.idt + 16),
            let cr0 = bytes.integer(UInt64.self, at: Self.controlRegisters),
            let cr2 = bytes.integer(UInt64.self, at: Self.controlRegisters + 16),
            let cr3 = bytes.integer(UInt64.self, at: Self.controlRegisters + 24),
            let cr4 = bytes.integer(UInt64.self, at: Self.controlRegisters + 32)
        else { return nil }
        codeSelector = UInt16(truncatingIfNeeded: selector)
        self.gdtBase = gdtBase
        self.gdtLimit = gdtLimit
        self.idtBase = idtBase
        self.idtLimit = idtLimit
        self.cr0 = cr0
        self.cr2 = cr2
        self.cr3 = cr3
        self.cr4 = cr4
    }

    /// CR0.PG.
    var isPaging: Bool { cr0 & 1 << 31 != 0 }

    /// It was in the kernel: no program's code segment has privilege level 0.
    var isPrivileged: Bool { codeSelector & 3 == 0 }

    /// The note has no EFER. A core that calls itself x86-64 is of a machine in long mode, and so is each of its
    /// vCPUs that has paging and PAE on; a kernel that uses bit 63 of an entry has set NXE, and for any other it
    /// makes no difference.
    func tables(of machine: ELFHeader.Machine) -> ProcessorTables {
        var control = ControlRegisters(cr0: cr0, cr3: cr3, cr4: cr4, efer: 0)
        control.cr2 = cr2
        if machine == .amd64, control.pagingEnabled, control.physicalAddressExtension {
            control.efer = Self.longMode
        } else if control.pagingEnabled, control.physicalAddressExtension {
            control.efer = Self.executeDisable
        }
        return ProcessorTables(
            control: control, idtBase: GuestVirtualAddress(idtBase), idtLimit: idtLimit,
            gdtBase: GuestVirtualAddress(gdtBase), gdtLimit: gdtLimit)
    }

    /// EFER.LME, LMA and NXE.
    static let longMode: UInt64 = 1 << 8 | 1 << 10 | executeDisable
    /// EFER.NXE.
    static let executeDisable: UInt64 = 1 << 11
}
