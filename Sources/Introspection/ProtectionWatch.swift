import GuestMemory
import HypervisorInterface
import PowerTransitions
import Protections

/// What becomes of protections.
public enum ProtectionEvent: Equatable, Sendable {
    /// These are checked from now on. `request` where they come back after its transition.
    case armed([ProtectionKind], request: RequestID?)
    /// Protection is off for a transition's sake, and cannot be configured until it is over.
    case disarmed([ProtectionKind], request: RequestID)
    case violation(Violation)
    /// A wish concerning protections was not fulfilled.
    case refused(String)
}

/// Checks what is protected, from a timer and when something was heard of a page, and stands still while the guest
/// goes down.
final class ProtectionWatch {
    /// How often what is protected is looked at.
    static let interval = Duration.milliseconds(500)
    /// How much of the guest is read at a time, in bytes.
    static let budget = 64 << 20

    private let protections: ProtectionSet
    private let now: () -> Deadline
    private let report: (ProtectionEvent) -> Void
    private var nextCheck: Deadline
    private var knownPages: Set<GuestVirtualAddress>?
    /// Protection is off for this request's sake.
    private var disarmedFor: RequestID?
    /// A request is under way.
    private var isInTransition = false

    init(
        _ protections: ProtectionSet, now: @escaping () -> Deadline = { ContinuousClock.now },
        report: @escaping (ProtectionEvent) -> Void
    ) {
        self.protections = protections
        self.now = now
        self.report = report
        nextCheck = now()
    }

    /// The kernel's pages whose translations matter: asked for again and again, while they are others only after
    /// something was armed, disarmed or looked at.
    var watchedPages: Set<GuestVirtualAddress> {
        if let knownPages { return knownPages }
        let pages = Set(protections.watchedPages.map(\.page))
        knownPages = pages
        return pages
    }

    // MARK: Configuration

    func arm(_ kinds: Set<ProtectionKind>, processes: [String]) throws(ProtectionError) {
        if disarmedFor != nil { throw .suspended }
        let before = protections.armed
        // Where one kind fails, those before it are armed.
        defer { knownPages = nil }
        try protections.arm(kinds, processes: processes)
        report(.armed(Self.sorted(protections.armed.subtracting(before)), request: nil))
        nextCheck = now() + Self.interval
    }

    func disarm(_ kinds: Set<ProtectionKind>) throws(ProtectionError) {
        if disarmedFor != nil { throw .suspended }
        protections.disarm(kinds)
        knownPages = nil
    }

    // MARK: Transitions

    /// A request was made. Hibernation switches all protection off, for what would be protected by halves meanwhile;
    /// looking goes on, since it puts nothing into the guest, until the kernel cannot turn back.
    func begins(_ id: RequestID, _ transition: Transition) {
        isInTransition = true
        guard transition == .hibernate, disarmedFor == nil, !protections.armed.isEmpty else { return }
        disarmedFor = id
        report(.disarmed(Self.sorted(protections.armed), request: id))
    }

    /// The function is entered. A machine that is about to be reset or switched off loses its tables before any event
    /// says so.
    func lets(_ transition: Transition) {
        if transition == .reboot || transition == .shutdown { protections.suspend() }
    }

    func handle(_ event: HostEvent) {
        switch event {
        case .suspended, .suspendedToDisk, .poweredOff: protections.suspend()
        // Asleep without a request, and awake again: nobody else will say that it is over.
        case .wokeUp where !isInTransition: ends()
        default: break
        }
    }

    /// No request is under way any more: what was changed meanwhile is a violation.
    func ends() {
        isInTransition = false
        if protections.isSuspended {
            attempt { () throws(ProtectionError) in
                for violation in try protections.resume() { report(.violation(violation)) }
            }
        } else {
            check()
        }
        if let id = disarmedFor {
            disarmedFor = nil
            report(.armed(Self.sorted(protections.armed), request: id))
        }
        nextCheck = now() + Self.interval
    }

    // MARK: Checks

    /// Something was heard of a page's translation.
    func check(page: GuestVirtualAddress) {
        attempt { () throws(ProtectionError) in
            for violation in try protections.check(page: page) { report(.violation(violation)) }
        }
    }

    private func check() {
        attempt { () throws(ProtectionError) in
            for violation in try protections.check(budget: Self.budget) { report(.violation(violation)) }
        }
    }

    /// Checks what is due, and says when the next check is.
    func tick() -> Deadline? {
        guard !protections.armed.isEmpty, !protections.isSuspended else { return nil }
        if nextCheck <= now() {
            check()
            nextCheck = now() + Self.interval
        }
        return nextCheck
    }

    private func attempt(_ body: () throws(ProtectionError) -> Void) {
        defer { knownPages = nil }
        do throws(ProtectionError) {
            try body()
        } catch {
            // A guest on its way down takes memory away that its processes are listed in. What could not be looked at
            // then is looked at when it is back.
            if !isInTransition { report(.refused(error.description)) }
        }
    }

    private static func sorted(_ kinds: Set<ProtectionKind>) -> [ProtectionKind] {
        ProtectionKind.allCases.filter(kinds.contains)
    }
}
