import FoundationEssentials
import HypervisorInterface

/// A guest that is not new in its machine: it had hibernated, and its memory came back.
public struct Awakening: Equatable, Sendable {
    /// What says so.
    public enum Sign: String, Sendable {
        /// A session saw this boot of the guest hibernate, in another machine.
        case record
        /// The guest has been awake for longer than its machine exists: it hibernated unseen, or a snapshot of
        /// it was loaded, or it was migrated.
        case olderThanMachine = "older-than-machine"
    }

    public var sign: Sign
    /// The session that saw the hibernation, and its request's number there; nil where none did.
    public var session: String?
    public var request: Int?
    public var hibernatedAt: Date?

    /// Named by the record of its hibernation.
    init(_ record: HibernationRecord) {
        sign = .record
        session = record.session
        request = record.request
        hibernatedAt = record.hibernatedAt
    }

    /// By its age alone.
    private init() { sign = .olderThanMachine }
    static let older = Awakening()

    /// By how much a guest must be the older one: clocks are read one after the other, and a guest's clock may
    /// be fast by a thousandth.
    static func margin(_ machineAge: Duration) -> Duration { .seconds(2) + machineAge / 1000 }

    /// Whether a guest was awake before its machine was there.
    /// - Parameters:
    ///   - awake: how long the guest has been awake. Time asleep is left out, because a guest takes it from a
    ///     clock that can be set. What a guest was awake in one machine, that machine existed for.
    ///   - machineAge: how long the machine's process has existed.
    static func isOlder(awake: Duration, than machineAge: Duration) -> Bool {
        awake > machineAge + margin(machineAge)
    }
}
