import GuestMemory
import X86

/// The kernel's table of system services (KeServiceDescriptorTable's first part).
public struct ServiceTable: Hashable, Sendable {
    public enum Source: String, Hashable, Sendable {
        /// By following an exported Zw stub into the system-call dispatcher.
        case stub
        /// By searching the kernel's code for the dispatcher's instructions.
        case scan
    }

    /// The KSERVICE_TABLE_DESCRIPTOR.
    public var descriptor: GuestVirtualAddress
    /// KiServiceTable: 32-bit entries relative to itself.
    public var base: GuestVirtualAddress
    /// The number of services.
    public var limit: UInt32
    /// KiSystemServiceRepeat: where every system call, of a program's or of the kernel's own, looks its service up;
    /// interrupts are enabled there, and the stack is the kernel's.
    public var dispatcher: GuestVirtualAddress
    /// KiServiceInternal, where the kernel's Zw stubs jump to; nil where no stub is exported.
    public var serviceEntry: GuestVirtualAddress?
    /// KeServiceDescriptorTableShadow, which holds the graphical services' table too; nil where the code that was
    /// found names none in the kernel.
    public var shadowDescriptor: GuestVirtualAddress?
    /// The pages of the dispatcher's code, as far as it was followed, up to where it loads the descriptors; in order.
    public var dispatcherPages: [GuestVirtualAddress]
    public var source: Source
    /// Exported services whose Zw stub's number leads to the exported Nt function.
    public var confirmations: [String]
    /// Those where it leads elsewhere: a changed entry.
    public var contradictions: [String]

    /// Windows has about 400 (Windows 7) to 500 (Windows 11).
    public static let plausibleLimits: ClosedRange<UInt32> = 0x80...0x1000

    /// The function of a service.
    ///
    /// An entry is signed: the function's distance from the table in its upper 28 bits, below that the number
    /// of arguments on the stack (public since Vista; the table is what `dps`-like tools decode).
    /// - Throws: `malformed` where the number is none of the table's, or the entry leads to no code.
    public func function(_ number: UInt32, in kernel: WindowsKernel) throws(DiscoveryError) -> GuestVirtualAddress {
        guard number < limit else {
            throw .malformed("service \(number) is beyond the table's \(limit) entries", at: base)
        }
        let slot = base + UInt64(number) * 4
        let entry = try reading("service \(number) of the table at \(base)") { () throws(MemoryError) in
            try kernel.memory.load(Int32.self, at: slot)
        }
        let function = base + UInt64(bitPattern: Int64(entry >> 4))
        guard kernel.image.isExecutable(function) else {
            throw .malformed("service \(number) leads to \(function), which is no code of the kernel's", at: slot)
        }
        return function
    }
}
