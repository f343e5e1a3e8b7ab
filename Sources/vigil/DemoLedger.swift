import Agents
import GuestMemory
import Introspection
import PowerTransitions
import Protections

/// What a session has said of a guest: what is in it, what is protected, and how the last transition went.
struct DemoLedger {
    static let protections = Set(ProtectionKind.allCases)

    /// The names of what is to be in the guest.
    let agents: Set<String>

    init(agents: Set<AgentKind>) { self.agents = Set(agents.map(\.rawValue)) }

    private(set) var isAttached = false
    private(set) var deployed: Set<String> = []
    private(set) var armed: Set<ProtectionKind> = []
    /// Of the transition under way.
    private(set) var outcome: TransitionResult?
    private(set) var withdrawn: Set<String> = []
    private(set) var away: Duration?
    private(set) var back: Duration?
    private(set) var problems: [String] = []
    private var outcomeAt: ContinuousClock.Instant?

    /// Everything that was asked for is in the guest, and checked.
    var isComplete: Bool { isAttached && deployed == agents && armed == Self.protections }

    /// Another transition begins.
    mutating func begin() {
        (outcome, outcomeAt, away, back) = (nil, nil, nil, nil)
        withdrawn = []
        problems = []
    }

    /// The session is over, or its guest is another one.
    mutating func end() {
        isAttached = false
        deployed = []
        armed = []
    }

    mutating func note(_ problem: String) { problems.append(problem) }

    mutating func take(_ said: DemoSession.Said) {
        switch said.event {
        case .attached:
            end()
            isAttached = true
        case .power(.outcome(_, _, let result, _)):
            (outcome, outcomeAt) = (result, said.time)
            if result == .reset { end() }
        case .power(.unannounced(let what)): note("unannounced: \(what.words)")
        case .power(.notHeld(_, let reason)): note("the caller was not held: \(reason)")
        case .agent(let event): take(event, said.time)
        case .protection(.armed(let kinds, _)): armed.formUnion(kinds)
        case .protection(.disarmed(let kinds, _)): armed.subtract(kinds)
        case .protection(.violation(let found)): note("violation of \(found.protection.rawValue): \(found.what)")
        case .protection(.refused(let reason)): note("protections: \(reason)")
        case .warning(let reason): note(reason)
        default: break
        }
    }

    private mutating func take(_ event: AgentEvent, _ time: ContinuousClock.Instant) {
        switch event {
        case .deployed(let name, _, _, _, _):
            deployed.insert(name)
            back = outcomeAt.map { time - $0 }
        case .withdrawn(let name, let duration, _):
            deployed.remove(name)
            withdrawn.insert(name)
            away = max(away ?? .zero, duration)
        case .neutralised(let name, _, let reason):
            deployed.remove(name)
            note("\(name) was left behind: \(reason)")
        case .failed(let name, let reason): note("\(name) was not deployed: \(reason)")
        case .report(let name, .lost(let count)): note("\(name) lost \(count) reports")
        case .report: break
        }
    }
}
