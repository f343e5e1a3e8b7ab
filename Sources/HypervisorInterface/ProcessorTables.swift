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
    /// No vCPU said this: the tables were found in memory, and that they belong together is an inference. Where
    /// several such lead to different systems, nothing tells which of them runs.
    public var isInferred: Bool

    public init(
        control: ControlRegisters, idtBase: GuestVirtualAddress, idtLimit: UInt32,
        gdtBase: GuestVirtualAddress, gdtLimit: UInt32, isInferred: Bool = false
    ) {
        self.control = control
        self.idtBase = idtBase
        self.idtLimit = idtLimit
        self.gdtBase = gdtBase
        self.gdtLimit = gdtLimit
        self.isInferred = isInferred
    }
}
