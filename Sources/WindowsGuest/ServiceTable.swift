import GuestMemory
import X86

/// The kernel's table of system services (KeServiceDescriptorTable's first part).
public struct ServiceTable: Hashable, Sendable {
    public enum Source: String, Hashable, Sendable {
        /// By following an exported Zw stub into the system-call dispatcher.
        case stub
        /// By searching the kernel's code for the dispatcher's instructions.
        case scan
        /// The kernel exports its descriptor (x86).
        case export
        /// By its entries: it is the one table that has the exported Nt functions at the numbers of their Zw stubs, and
        /// a descriptor leads to it.
        case shape

        /// For the user.
        var words: String {
            switch self {
            case .stub: "a stub that leads to the dispatcher"
            case .scan: "the dispatcher's instructions"
            case .export: "its exported descriptor"
            case .shape: "what it holds"
            }
        }
    }

    /// How an entry, always of 32 bits, says where its function is.
    public enum Encoding: String, Hashable, Sendable {
        /// x86: its address.
        case absolute
        /// x64 since Vista: the distance from the table in the upper 28 bits, signed.
        case shifted
        /// x64 before Vista: the distance from the table, whose lower 4 bits are to be cleared (functions are 16-byte
        /// aligned).
        case masked

        public init(architecture: KernelArchitecture, build: UInt32) {
            self = architecture == .x86 ? .absolute : build < 6000 ? .masked : .shifted
        }

        /// Where the entry of a table at `base` leads.
        @inlinable public func function(_ entry: UInt32, base: GuestVirtualAddress) -> GuestVirtualAddress {
            let distance = Int64(Int32(bitPattern: entry))
            return switch self {
            case .absolute: GuestVirtualAddress(UInt64(entry))
            case .shifted: base + UInt64(bitPattern: distance >> 4)
            case .masked: base + UInt64(bitPattern: distance & ~0xf)
            }
        }
    }

    /// The KSERVICE_TABLE_DESCRIPTOR.
    public var descriptor: GuestVirtualAddress
    /// KiServiceTable.
    public var base: GuestVirtualAddress
    public var encoding: Encoding
    /// The number of services.
    public var limit: UInt32
    /// KiSystemServiceRepeat: where every system call, of a program's or of the kernel's own, looks its service up;
    /// interrupts are enabled there, and the stack is the kernel's. nil where it was not found.
    public var dispatcher: GuestVirtualAddress?
    /// KiServiceInternal (x86: KiSystemService), where the kernel's Zw stubs go; nil where no stub is exported.
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
    /// On x64 the lower four bits of an entry are the number of arguments on the stack, the rest the function's
    /// distance from the table (the table is what `dps`-like tools decode).
    /// - Throws: `malformed` where the number is none of the table's, or the entry leads to no code.
    public func function(_ number: UInt32, in kernel: WindowsKernel) throws(DiscoveryError) -> GuestVirtualAddress {
        guard number < limit else {
            throw .malformed("service \(number) is beyond the table's \(limit) entries", at: base)
        }
        let slot = base + UInt64(number) * 4
        let entry = try reading("service \(number) of the table at \(base)") { () throws(MemoryError) in
            try kernel.memory.load(UInt32.self, at: slot)
        }
        let function = encoding.function(entry, base: base)
        guard kernel.image.isExecutable(function) else {
            throw .malformed("service \(number) leads to \(function), which is no code of the kernel's", at: slot)
        }
        return function
    }
}
