import GuestMemory
import WindowsGuest

/// What names one boot of a guest, whatever machine it runs in: a hibernation does not end it, a reset does.
///
/// Nothing here is kept by the machine. All of it lies in the guest's memory, and so comes back with it.
public struct BootIdentity: Hashable, Sendable {
    /// The kernel's file, and the address that this boot drew for it.
    public var kernel: KernelIdentity
    /// The System process's object (`PsInitialSystemProcess`).
    public var systemProcess: GuestVirtualAddress
    /// The System process's `DirectoryTableBase`: a physical address, with flags in its low bits.
    public var systemPageTables: UInt64

    public init(kernel: KernelIdentity, systemProcess: GuestVirtualAddress, systemPageTables: UInt64) {
        self.kernel = kernel
        self.systemProcess = systemProcess
        self.systemPageTables = systemPageTables
    }

    /// The identity of the boot that a kernel belongs to.
    public init(of kernel: WindowsKernel) {
        self.init(
            kernel: kernel.identity, systemProcess: kernel.initialSystemProcess, systemPageTables: kernel.systemCR3)
    }
}
