import HypervisorInterface

/// How a host command ended.
public enum CommandEnd: Equatable, Sendable {
    /// With an exit code, 0 to 255; 0 is a success.
    case exited(code: Int32)
    /// By a signal, of this number.
    case signalled(Int32)
    /// It could not be started, and why, in words.
    case notStarted(reason: String)

    public var isSuccess: Bool { self == .exited(code: 0) }
}

/// A command that runs on the host while a caller is held.
public protocol HoldCommand: AnyObject {
    var processID: Int32 { get }

    /// Can be read once the command has ended. Open as long as this object lives.
    var endDescriptor: Int32 { get }

    /// How it ended; nil while it runs.
    var end: CommandEnd? { get }

    /// Whether processes that it started outlive it, in its process group.
    var hasLeftovers: Bool { get }

    /// Sends a signal to the command and all of its process group.
    func send(_ signal: Int32)

    /// Waits until it has ended, until `deadline` at the latest.
    func waitForEnd(until deadline: Deadline)
}
