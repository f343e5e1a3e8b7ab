/// Whether the callers of requests are held, and what ends a hold.
public enum HoldPolicy: Equatable, Sendable {
    /// Nobody is held.
    case none
    /// Each for so long.
    case lasting(Duration)
    /// Each until its request is released, but for `limit` at most.
    case untilReleased(limit: Duration)

    /// How long a hold lasts if nothing ends it earlier.
    var longest: Duration {
        switch self {
        case .none: .zero
        case .lasting(let duration): duration
        case .untilReleased(let limit): limit
        }
    }
}
