import BundledGuest
import Foundation
import HypervisorInterface
import Introspection
import PowerTransitions
import QEMUHypervisor

/// What the demo asks of the guest, one thing after another, and whether Vigil saw it.
///
/// The engine runs on the main thread; the story tells itself on a thread of its own, waiting for the
/// engine's events.
final class DemoStory: @unchecked Sendable {
    struct Chapter: Encodable {
        var name: String
        var passed: Bool
        /// In words.
        var seen: String
    }

    /// The story goes through two QEMUs.
    enum Part {
        /// From the first boot to the hibernation.
        case first
        /// From the resume to the end; with what the first part's session said of itself.
        case second(session: String, request: Int)

        var length: Int {
            switch self {
            case .first: 7
            case .second: 2
            }
        }
    }

    /// How many chapters a whole story has.
    static let length = 9

    private static let timeout: TimeInterval = 60

    private let part: Part
    private let guest: BundledGuestMachine
    private let engine: Engine
    private let hold: Duration
    private let note: (String) -> Void
    private let condition = NSCondition()
    private var events: [EngineEvent] = []
    private var isOver = false
    private var finished: [Chapter] = []
    /// The request that hibernated the guest.
    private var hibernation: Int?

    init(_ part: Part, guest: BundledGuestMachine, engine: Engine, hold: Duration, note: @escaping (String) -> Void) {
        self.part = part
        self.guest = guest
        self.engine = engine
        self.hold = hold
        self.note = note
    }

    var chapters: [Chapter] {
        condition.lock()
        defer { condition.unlock() }
        return finished
    }

    /// The number of the request that hibernated the guest, where that was seen.
    var hibernationRequest: Int? {
        condition.lock()
        defer { condition.unlock() }
        return hibernation
    }

    /// Takes an event of the engine's.
    func observe(_ event: EngineEvent) {
        condition.lock()
        events.append(event)
        condition.broadcast()
        condition.unlock()
    }

    func begin() {
        let thread = Thread { [self] in tell() }
        thread.start()
    }

    /// The engine has ended: nothing more will come.
    func end() {
        condition.lock()
        isOver = true
        condition.broadcast()
        // The last chapter may still be being written.
        let deadline = Date().addingTimeInterval(2)
        while finished.count < part.length && condition.wait(until: deadline) {}
        condition.unlock()
    }

    /// Waits for the first event that `pick` wants, and forgets those before it.
    private func next<Value>(_ pick: (EngineEvent) -> Value?) -> Value? {
        condition.lock()
        defer { condition.unlock() }
        let deadline = Date().addingTimeInterval(Self.timeout)
        while true {
            for (index, event) in events.enumerated() {
                if let value = pick(event) {
                    events.removeSubrange(...index)
                    return value
                }
            }
            if isOver || !condition.wait(until: deadline) { return nil }
        }
    }

    private func add(_ name: String, _ passed: Bool, _ seen: String) {
        condition.lock()
        finished.append(Chapter(name: name, passed: passed, seen: seen))
        condition.broadcast()
        condition.unlock()
    }

    private func nextAttached() -> Bool { next { if case .attached = $0 { true } else { nil } } ?? false }

    private func nextIgnored() -> (reason: String, status: UInt32?)? {
        next { if case .power(.requestIgnored(_, _, let reason, let status)) = $0 { (reason, status) } else { nil } }
    }

    private func nextAwoken() -> Awakening? { next { if case .awoken(let awakening) = $0 { awakening } else { nil } } }

    private typealias Outcome = (request: Int, transition: Transition, result: TransitionResult, status: UInt32?)

    private func nextOutcome() -> Outcome? {
        next {
            if case .power(.outcome(let id, let transition, let result, let status)) = $0 {
                (id.number, transition, result, status)
            } else {
                nil
            }
        }
    }

    private func nextHeld() -> Duration? {
        next { if case .power(.held(_, let duration, _)) = $0 { duration } else { nil } }
    }

    /// Asks the guest for a transition that it comes back from.
    private func ask(_ command: String) throws -> GuestConsole.Reply {
        note("guest> \(command)")
        let reply = try guest.console.run(command)
        note("guest: \(reply.result)")
        return reply
    }

    private func tell() {
        do {
            guard nextAttached() else { return }
            switch part {
            case .first:
                try refusals()
                try goDown("a reboot", .reboot, .reset, "power user 5 6 0")
                guard nextAttached() else { return }
                try goDown("a hibernation", .hibernate, .hibernated, "power user 3 5 0")
            case .second(let session, let request):
                try awakening(session, request)
                try goDown("a shutdown", .shutdown, .poweredOff, "power user 6 6 0")
            }
        } catch {
            add("the guest", false, "\(error)")
        }
    }

    private func refusals() throws {
        var reply = try ask("power unprivileged 5 6 0")
        let unprivileged = nextIgnored()
        add(
            "an unprivileged reboot", unprivileged != nil && UInt64(unprivileged?.status ?? 0) == reply["status"],
            "ignored: \(unprivileged?.reason ?? "not seen")")

        reply = try ask("power kernel 5 9 0")
        let malformed = nextIgnored()
        add("a reboot with bad arguments", malformed != nil, "ignored: \(malformed?.reason ?? "not seen")")

        _ = try ask("refuse on")
        reply = try ask("power user 5 6 0")
        let held = nextHeld()
        let outcome = nextOutcome()
        add(
            "a reboot that a driver refuses",
            held != nil && outcome?.result == .refused && outcome?.status.map(UInt64.init) == reply["status"],
            words(held, outcome))
        _ = try ask("refuse off")
        try sleep()

        reply = try ask("counts")
        let calls = engine.calls
        add(
            "calls as the guest counted them",
            reply["entries"] == UInt64(calls.entries) && reply["returns"] == UInt64(calls.returns),
            "guest \(reply["entries"] ?? 0) entries, \(reply["returns"] ?? 0) returns; "
                + "Vigil \(calls.entries) and \(calls.returns)")
    }

    private func sleep() throws {
        note("guest> power user 2 4 0")
        let call = try guest.console.start("power user 2 4 0")
        let held = nextHeld()
        try QEMUOperator(.unix(path: guest.operatorSocket)).wakeWhenAsleep(within: .seconds(30))
        note("operator: system_wakeup")
        let outcome = nextOutcome()
        let reply = try guest.console.reply(to: call)
        note("guest: \(reply.result)")
        add(
            "a sleep, and the wake from it",
            held != nil && outcome?.transition == .sleep && outcome?.result == .resumed && reply["status"] == 0,
            words(held, outcome))
    }

    private func awakening(_ session: String, _ request: Int) throws {
        let awakening = nextAwoken()
        let check = try ask("check")
        let isNamed = awakening?.session == session && awakening?.request == request
        let words = isNamed ? "awoken from #\(request) of the session before" : awakening?.sign.rawValue ?? "not seen"
        add("its resume in a new QEMU", isNamed && check.isOK, "\(words); guest: \(check.result)")
    }

    private func goDown(
        _ name: String, _ transition: Transition, _ result: TransitionResult, _ command: String
    ) throws {
        note("guest> \(command)")
        _ = try guest.console.start(command)
        let held = nextHeld()
        let outcome = nextOutcome()
        if outcome?.result == .hibernated {
            condition.lock()
            hibernation = outcome?.request
            condition.unlock()
        }
        add(
            name, (held ?? .zero) >= hold && outcome?.transition == transition && outcome?.result == result,
            words(held, outcome))
    }

    private func words(_ held: Duration?, _ outcome: Outcome?) -> String {
        let hold = held.map { "held \($0.readable)" } ?? "not held"
        guard let outcome else { return "\(hold), no outcome seen" }
        return "\(hold), then \(outcome.result.rawValue)" + (outcome.status.map { " (\(ntstatus($0)))" } ?? "")
    }
}
