import GuestMemory
import HypervisorInterface
import WindowsGuest

/// Why a function is not intercepted, or a caller not held.
public enum DetourError: Error, Sendable {
    case hypervisor(HypervisorError)
    case memory(MemoryError, doing: String)
    /// All debug registers are in use.
    case noDebugRegister
    /// No slack for the handler was found.
    case noSlack(DiscoveryError)
    /// The place for the handler has become something else since it was chosen.
    case slackInUse(GuestVirtualAddress)
    /// As many callers are held as there are slots.
    case noFreeSlot(slots: Int)
    /// The caller is not in a state in which it may wait.
    case cannotWait(String)
    /// The inline detour was not put into the function, or not taken out of it.
    case inline(InlineDetourError)
    case invalidDataSize(DetourHandler.PublicData, size: Int, allowed: Int)
}

extension DetourError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .hypervisor(let error): error.description
        case .memory(let error, let doing): "\(doing): \(error)"
        case .noDebugRegister: "all debug registers are in use"
        case .noSlack(let error): "no room for the handler in the kernel's image: \(error)"
        case .slackInUse(let address): "the kernel's slack at \(address) is not zero any more, so it is left alone"
        case .noFreeSlot(let slots): "\(slots) callers are held already"
        case .cannotWait(let why): "the caller cannot be held: \(why)"
        case .inline(let error): error.description
        case .invalidDataSize(let data, let size, let allowed):
            "\(size) bytes do not fit into \(data.rawValue) (\(allowed) bytes)"
        }
    }
}

/// Runs hypervisor calls; a failure becomes the detour's error.
public func control<Result>(_ body: () throws(HypervisorError) -> Result) throws(DetourError) -> Result {
    do throws(HypervisorError) {
        return try body()
    } catch {
        throw .hypervisor(error)
    }
}
