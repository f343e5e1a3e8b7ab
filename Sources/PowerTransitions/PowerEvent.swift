import HypervisorInterface

/// A number that names a request within one session: 1, 2, …
public struct RequestID: Hashable, Sendable {
    public let number: Int
    public init(_ number: Int) { self.number = number }
}

/// How a transition ended.
public enum TransitionResult: String, Sendable {
    /// The machine slept, and the function came back.
    case resumed
    /// The function came back with an error.
    case refused
    /// The machine powered off with its memory on disk.
    case hibernated
    case poweredOff = "powered-off"
    case reset
    /// The function came back with success, and the machine never went down.
    case returned
    /// Nothing was seen: no register was left to watch the return, and no host event came.
    case unknown
}

/// Why a held caller was let go.
public enum ReleaseReason: String, Sendable {
    /// What had to leave the guest has left.
    case withdrawn
    /// Requests before it were refused, one after the other.
    case answeredSlowly = "answered-slowly"
    /// It was held for as long as was asked for.
    case holdOver = "hold-over"
    /// It would have been held longer than Vigil's deadline allows.
    case deadline
    /// What it waited for was done, without a failure.
    case commandEnded = "command-ended"
    /// What it waited for failed, or could not be begun.
    case commandFailed = "command-failed"
    /// What it waited for took too long.
    case holdLimit = "hold-limit"
    /// Vigil leaves the guest.
    case leaving
    /// It went by itself: the guest saw no sign of life of Vigil.
    case leaseExpired = "lease-expired"
    /// It came back early, and could not be made to wait any longer.
    case cannotWait = "cannot-wait"
}

/// What is reported of power transitions.
public enum PowerEvent: Sendable {
    case transitionRequested(RequestID, PowerRequest, Caller)
    /// A call that will not lead to a transition, and why; with its status where the function gave one.
    case requestIgnored(PowerRequest, Caller, reason: String, status: UInt32?)
    /// A caller was held, for how long, and how often the guest was stopped for it.
    case held(RequestID, duration: Duration, stops: Int)
    case released(RequestID, ReleaseReason)
    /// A request was to be held, but could not be.
    case notHeld(RequestID, reason: String)
    case outcome(RequestID, Transition, TransitionResult, status: UInt32?)
    /// So many requests in a row were refused; the next one is answered so much later.
    case repeatedlyRefused(count: Int, delay: Duration)
    /// A host event that no request foretold.
    case unannounced(HostEvent)
}

/// The function's calls as Vigil saw them; a guest that counts too must come to the same numbers.
public struct CallCounts: Equatable, Sendable {
    public var entries = 0
    public var returns = 0
    /// Calls whose return could not be watched, because every debug register was in use.
    public var unwatched = 0

    public init() {}

    public static func + (a: Self, b: Self) -> Self {
        var sum = a
        sum.entries += b.entries
        sum.returns += b.returns
        sum.unwatched += b.unwatched
        return sum
    }
}
