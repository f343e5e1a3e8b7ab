/// The registers of one vCPU that Vigil reads and writes.
public struct Registers: Equatable, Sendable {
    public var rax: UInt64 = 0, rbx: UInt64 = 0, rcx: UInt64 = 0, rdx: UInt64 = 0
    public var rsi: UInt64 = 0, rdi: UInt64 = 0, rbp: UInt64 = 0, rsp: UInt64 = 0
    public var r8: UInt64 = 0, r9: UInt64 = 0, r10: UInt64 = 0, r11: UInt64 = 0
    public var r12: UInt64 = 0, r13: UInt64 = 0, r14: UInt64 = 0, r15: UInt64 = 0
    public var rip: UInt64 = 0
    public var rflags: UInt64 = 0
    public var cs: UInt16 = 0, ss: UInt16 = 0
    public var fsBase: UInt64 = 0, gsBase: UInt64 = 0, kernelGSBase: UInt64 = 0
    public var control = ControlRegisters()

    public init() {}

    /// The base of the processor's control region (KPCR) while the vCPU is in the kernel: Windows has it in GS
    /// in long mode, else in FS.
    public var processorRegion: UInt64 { control.longModeActive ? gsBase : fsBase }

    /// RFLAGS.IF: maskable interrupts are enabled.
    public var interruptsEnabled: Bool { rflags & (1 << 9) != 0 }

    /// The current privilege level, from CS.
    public var privilegeLevel: Int { Int(cs & 3) }
}

/// The registers that say how a vCPU translates addresses.
public struct ControlRegisters: Equatable, Sendable {
    public var cr0: UInt64 = 0, cr2: UInt64 = 0, cr3: UInt64 = 0, cr4: UInt64 = 0, cr8: UInt64 = 0
    public var efer: UInt64 = 0

    public init() {}

    public init(cr0: UInt64, cr3: UInt64, cr4: UInt64, efer: UInt64) {
        self.cr0 = cr0
        self.cr3 = cr3
        self.cr4 = cr4
        self.efer = efer
    }

    /// CR0.PG: paging is on. Intel SDM volume 3, 2.5.
    public var pagingEnabled: Bool { cr0 & (1 << 31) != 0 }
    /// CR4.PAE.
    public var physicalAddressExtension: Bool { cr4 & (1 << 5) != 0 }
    /// CR4.LA57: 5-level paging.
    public var fiveLevelPaging: Bool { cr4 & (1 << 12) != 0 }
    /// EFER.LMA: the vCPU is in long mode.
    public var longModeActive: Bool { efer & (1 << 10) != 0 }
}
