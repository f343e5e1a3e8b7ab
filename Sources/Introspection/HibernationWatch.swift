import FoundationEssentials
import HypervisorInterface
import PowerTransitions

/// Ties a hibernation to the resume in another machine. Of one boot of the guest in one machine.
///
/// What does not work here is a warning, and nothing else depends on it.
final class HibernationWatch {
    private let boot: BootIdentity
    private let awakeTime: Duration?
    private let machine: MachineIdentity
    private let options: EngineOptions
    private let forward: (EngineEvent) -> Void
    /// What the request that stands in the record had asked for.
    private var recorded: Transition?

    /// - Parameter report: takes the events, the power guard's included.
    init(
        _ survey: GuestSurvey, machine: MachineIdentity, options: EngineOptions, report: @escaping (EngineEvent) -> Void
    ) {
        boot = survey.boot
        awakeTime = survey.awakeTime
        self.machine = machine
        self.options = options
        forward = report
    }

    /// Passes an event on. A hibernation is recorded first: whoever is told of it may resume the guest at once.
    func report(_ event: PowerEvent) {
        if case .outcome(let id, let transition, .hibernated, _) = event { record(id, transition) }
        forward(.power(event))
    }

    private func record(_ id: RequestID, _ transition: Transition) {
        // Other requests may have been open when the machine went down: the one that asked for it counts.
        guard let journal = options.journal, recorded == nil || transition == .hibernate && recorded != .hibernate
        else { return }
        recorded = transition
        attempt { () throws(HibernationJournalError) in
            try journal.write(
                HibernationRecord(
                    boot: boot, machine: machine, session: options.session, request: id.number,
                    hibernatedAt: Date(), awakeTime: awakeTime))
        }
    }

    /// Says whether the guest, which has just been attached to, came from another machine.
    func reportAwakening() {
        if let record = matchingRecord() {
            forward(.awoken(Awakening(record)))
        } else if let awakeTime, let start = machine.processStart,
            Awakening.isOlder(awake: awakeTime, than: HostClock.sinceBoot - start)
        {
            forward(.awoken(.older))
        }
    }

    /// The record that the guest came back from. It is good for one resume.
    private func matchingRecord() -> HibernationRecord? {
        guard let journal = options.journal else { return nil }
        var found: HibernationRecord?
        attempt { () throws(HibernationJournalError) in
            guard let record = try journal.record(of: boot), record.explains(machine, awake: awakeTime) else { return }
            found = record
            try journal.remove(boot)
        }
        return found
    }

    private func attempt(_ body: () throws(HibernationJournalError) -> Void) {
        do throws(HibernationJournalError) { try body() } catch { forward(.warning(error.description)) }
    }
}
