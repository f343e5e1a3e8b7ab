import FoundationEssentials
import HypervisorInterface

/// A hibernation that was seen to its end: what is needed to know the guest again in another machine.
public struct HibernationRecord: Equatable, Sendable {
    public var boot: BootIdentity
    /// The machine that the guest hibernated in.
    public var machine: MachineIdentity
    /// The session that saw it, and the request's number there.
    public var session: String
    public var request: Int
    public var hibernatedAt: Date
    /// How long the guest had been awake when that session attached; nil where its clock could not be read.
    public var awakeTime: Duration?

    public init(
        boot: BootIdentity, machine: MachineIdentity, session: String, request: Int, hibernatedAt: Date,
        awakeTime: Duration?
    ) {
        self.boot = boot
        self.machine = machine
        self.session = session
        self.request = request
        self.hibernatedAt = hibernatedAt
        self.awakeTime = awakeTime
    }

    /// Whether a guest of the same boot identity, seen now in a machine, has come back from this hibernation.
    ///
    /// It has not where the machine is still the one that it hibernated in, or where the guest is younger than
    /// it was before: then it is another boot, which drew the same addresses.
    /// - Parameter awake: how long the guest has been awake, where that is known.
    func explains(_ current: MachineIdentity, awake: Duration?) -> Bool {
        if let start = machine.processStart, let id = machine.processID,
            start == current.processStart, id == current.processID
        {
            return false
        }
        if let before = awakeTime, let awake, awake < before { return false }
        return true
    }
}

/// Where records of hibernations wait for the guest to come back.
public protocol HibernationJournal {
    /// Keeps a record, in place of an older one of the same boot.
    func write(_ record: HibernationRecord) throws(HibernationJournalError)

    /// The record of a boot, or nil where there is none.
    func record(of boot: BootIdentity) throws(HibernationJournalError) -> HibernationRecord?

    /// Removes the record of a boot, if there is one.
    func remove(_ boot: BootIdentity) throws(HibernationJournalError)
}

/// Why a record could not be kept, read or removed: a sentence for the user.
public struct HibernationJournalError: Error, Equatable, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
}
