import GuestMemory
import X86

extension KernelMemory {
    /// `_KPCR.Irql` of x86, in every version (public symbols), in bytes.
    private static let irqlOffset: UInt64 = 0x24

    /// The IRQL that a vCPU is at, which is in the kernel: 0 is PASSIVE_LEVEL.
    ///
    /// On x64 it is CR8 (Intel SDM volume 3, 10.8.6). On x86 some HALs keep it in the processor's control region
    /// and tell the interrupt controller only when an interrupt comes, others keep it in the controller, whose task
    /// priority CR8 is: the higher of the two.
    public func interruptLevel(_ registers: Registers) throws(MemoryError) -> UInt64 {
        let priority = registers.control.cr8
        guard KernelArchitecture(pagingMode) == .x86 else { return priority }
        let region = GuestVirtualAddress(registers.processorRegion)
        return max(priority, UInt64(try load(UInt8.self, at: region + Self.irqlOffset)))
    }
}
