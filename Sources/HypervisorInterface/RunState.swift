/// What a machine as a whole is doing.
public enum RunState: Equatable, Sendable {
    case running
    /// Stopped by its operator, or by a pause of ours.
    case paused
    /// Stopped at a breakpoint.
    case stoppedByDebugger
    /// In ACPI S3: only a wake event starts it again.
    case suspended
    /// Created, or reset while stopped: not started yet.
    case notStarted
    /// Powered off, its process kept alive.
    case poweredOff
    /// Stopped because its guest reported a crash.
    case guestPanicked
    /// Any other state, by the hypervisor's name for it.
    case other(String)

    /// A guest in this state executes instructions.
    public var isRunning: Bool { self == .running }
}
