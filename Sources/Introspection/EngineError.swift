import Agents
import Detours
import HypervisorInterface
import WindowsGuest

/// Why the engine could not go on. Each description is a sentence for the user.
public enum EngineError: Error, Sendable {
    case hypervisor(HypervisorError)
    /// The kernel, or something in it, is not known, and waiting did not help or cannot.
    case discovery(DiscoveryError)
    case detour(DetourError)
    /// An agent that was asked for cannot be deployed in this guest, or may not be.
    case agent(AgentError)
}

extension EngineError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .hypervisor(let error): error.description
        case .discovery(let error): error.description
        case .detour(let error): error.description
        case .agent(let error): error.description
        }
    }

    /// The hypervisor's error, wherever it came up.
    public var hypervisorError: HypervisorError? {
        switch self {
        case .hypervisor(let error), .detour(.hypervisor(let error)), .detour(.inline(.hypervisor(let error))),
            .agent(.hypervisor(let error)):
            error
        default: nil
        }
    }
}

/// Runs hypervisor calls; a failure becomes the engine's error.
func host<Result>(_ body: () throws(HypervisorError) -> Result) throws(EngineError) -> Result {
    do throws(HypervisorError) {
        return try body()
    } catch {
        throw .hypervisor(error)
    }
}

/// Runs calls of the detour and the guard; a failure becomes the engine's error.
func detour<Result>(_ body: () throws(DetourError) -> Result) throws(EngineError) -> Result {
    do throws(DetourError) {
        return try body()
    } catch {
        throw .detour(error)
    }
}
