import CDetourHandler
import GuestMemory
import WindowsGuest

/// The machine code that a held caller waits in, with its named public data.
///
/// The code itself is `CDetourHandler/handler.S`. What of it can be changed has a name here, as the
/// original's "public data" has.
public struct DetourHandler {
    /// What of the handler may be changed.
    public enum PublicData: String, CaseIterable, Sendable {
        /// One byte for each slot: other than 0, the slot's caller waits.
        case spinWait = "spinwait"
        /// One byte that a living Vigil keeps changing.
        case lease
        /// How long the lease byte may stay as it is, in 100 ns of the guest's unbiased interrupt time.
        case leaseLimit
        /// The address of the guest's shared user data; 0 for no lease.
        case sharedData
        /// The address of the guest's `KeDelayExecutionThread`; 0 for a pause loop.
        case delayFunction
        /// The length of one delay, negative, in 100 ns.
        case delayInterval
        /// The address of the intercepted function's entry.
        case entry
    }

    /// The bytes as they are written to the guest.
    public private(set) var bytes: [UInt8]
    private let layout = cdetour_layout()

    /// A handler in which every slot is free and nothing is filled in.
    public init() { bytes = Array(UnsafeBufferPointer(start: layout.code, count: Int(layout.length))) }

    /// Whether kernels of an architecture can execute it: it is code for 64-bit ones.
    public static func isFor(_ architecture: KernelArchitecture) -> Bool { architecture == .x64 }

    public static let length = Int(cdetour_layout().length)
    /// How many callers can be held at once.
    public static let slots = Int(cdetour_layout().slots)

    /// Where a slot's caller is sent, in bytes from the handler's start.
    public func stubOffset(slot: Int) -> Int { slot * Int(layout.stub_size) }

    /// Where public data lies, in bytes from the handler's start.
    public func range(of data: PublicData) -> Range<Int> {
        func at(_ offset: UInt32, _ size: Int) -> Range<Int> { Int(offset)..<Int(offset) + size }
        return switch data {
        case .spinWait: at(layout.wait, Self.slots)
        case .lease: at(layout.lease, 1)
        case .leaseLimit: at(layout.lease_limit, 8)
        case .sharedData: at(layout.shared_data, 8)
        case .delayFunction: at(layout.delay_function, 8)
        case .delayInterval: at(layout.delay_interval, 8)
        case .entry: at(layout.entry, 8)
        }
    }

    /// Fills 64-bit public data in.
    mutating func set(_ data: PublicData, to value: UInt64) {
        withUnsafeBytes(of: value.littleEndian) { bytes.replaceSubrange(range(of: data), with: $0) }
    }
}
