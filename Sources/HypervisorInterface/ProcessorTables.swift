import GuestMemory
import X86

/// What one vCPU says of its translation and its system tables: enough to find a kernel.
///
/// Taken while the guest runs, the values are of slightly different instants.
public struct ProcessorTables: Equatable, Sendable {
    public var control: ControlRegisters
    public var idtBase: GuestVirtualAddress
    /// In bytes, less one.
    public var idtLimit: UInt32
    public var gdtBase: GuestVirtualAddress
    public var gdtLimit: UInt32

    public init(
        control: ControlRegisters, idtBase: GuestVirtualAddress, idtLimit: UInt32,
        gdtBase: GuestVirtualAddress, gdtLimit: UInt32
    ) {
        self.control = control
        self.idtBase = idtBase
        self.idtLimit = idtLimit
        self.gdtBase = gdtBase
        self.gdtLimit = gdtLimit
    }
}
