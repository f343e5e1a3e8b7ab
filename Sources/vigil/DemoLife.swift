import BundledGuest
import Foundation
import HypervisorInterface
import Introspection
import PowerTransitions
import Protections
import QEMUHypervisor
import Synchronization

/// A guest under load with agents in it and protections armed, over all its transitions: in as many QEMUs as that
/// takes.
final class DemoLife {
    /// Somebody wants Vigil to end.
    private final class Interruption: Sendable {
        let happened = Mutex(false)
    }

    struct Setup {
        var architecture = GuestConfiguration.Architecture.x64
        var processors = 1
        /// Agents are taken out before transitions.
        var isGuarded = true
        /// What is in the guest: agents are for 64-bit kernels.
        var agents: Set<AgentKind> { architecture == .x64 ? Set(AgentKind.allCases) : [] }
        var note: (String) -> Void = { _ in }
        /// Gets each event of each session, on a thread of the session's own.
        var report: (EngineEvent) -> Void = { _ in }
    }

    /// How the guest's last words begin.
    private static let bugCheck = "bugcheck 0x"
    private static let ready = "Vigil guest ready"
    private static let awake = "! awake"
    /// The tags of Vigil's blocks in the guest's pool, and of the guest's threads.
    private static let tag = "Vigl"
    private static let threadTag = "Thre"
    private static let settling = Duration.seconds(5)

    /// Blocks of the guest's pool, by tag.
    private typealias Pool = [String: Int]

    private let setup: Setup
    private var disk: TemporaryDisk
    private let stateFolder: String
    private let interruption = Interruption()
    private var guest: BundledGuestMachine?
    private var session: DemoSession?
    private var ledger: DemoLedger
    /// Of this boot, before there was any load, or anything of Vigil's.
    private var pool: Pool = [:]

    init(_ setup: Setup) throws {
        self.setup = setup
        ledger = DemoLedger(agents: setup.agents)
        disk = try TemporaryDisk()
        stateFolder = "\(NSTemporaryDirectory())/vigil-demo-\(UUID().uuidString)"
    }

    deinit {
        guest?.process.kill()
        try? FileManager.default.removeItem(atPath: stateFolder)
    }

    // MARK: Coming up

    /// Starts a QEMU in which the guest boots, and puts everything in place.
    func boot() throws {
        setup.note("booting the bundled guest in QEMU")
        // One that crashed in a hybrid sleep has left an image, from which the next would resume.
        disk = try TemporaryDisk()
        let guest = try start()
        setup.note("guest: \(try guest.waitUntilReady())")
        try prepare(guest)
        try attach(guest)
        try awaitCompletion()
    }

    private func start() throws -> BundledGuestMachine {
        try checkInterruption()
        // The disk is the old one's until it is gone.
        guest?.process.kill()
        guest = nil
        var configuration = GuestConfiguration()
        configuration.architecture = setup.architecture
        configuration.disk = disk.path
        configuration.extraArguments = ["-smp", String(setup.processors)]
        let new = try BundledGuestMachine(configuration)
        guest = new
        return new
    }

    /// What a boot begins without.
    private func prepare(_ guest: BundledGuestMachine) throws {
        // It checks its code when it comes back from a sleep, of either kind, or from a hibernation.
        try guest.console.run("guard resume")
        pool = try blocks(guest)
        try guest.console.run("load on")
    }

    private func attach(_ guest: BundledGuestMachine) throws {
        var options = EngineOptions()
        options.agents = setup.agents
        options.protections = Set(ProtectionKind.allCases)
        options.protectedProcesses = ["app.exe"]
        options.allowVisiblePatches = !setup.agents.isEmpty
        options.withdrawsAgents = setup.isGuarded
        options.journal = FileHibernationJournal(folder: stateFolder)
        guard let target = Target(argument: guest.target) else { throw DemoFailure("\(guest.target) is no target") }
        setup.note(
            "$ vigil attach \(guest.target) "
                + (setup.agents.isEmpty ? "" : "--allow-visible-patches --agents heartbeat pt-filter ") + "--protect "
                + ProtectionKind.allCases.map(\.rawValue).joined(separator: " ") + " --process app.exe")
        if !setup.isGuarded { setup.note("  (with the guard off, which only the demo can do)") }
        let process = guest.process
        session = DemoSession(target, options, report: setup.report) { [interruption] in
            interruption.happened.withLock { $0 = true }
            // Nobody shall wait for it any more.
            process.kill()
        }
    }

    private func checkInterruption() throws {
        if interruption.happened.withLock({ $0 }) { throw DemoFailure("the demo was interrupted") }
    }

    /// Takes events until `isEnough`, or to the session's end.
    private func takeEvents(until isEnough: () -> Bool) throws {
        while !isEnough() {
            guard let event = try session?.next() else {
                session = nil
                return
            }
            ledger.take(event)
        }
    }

    private func awaitCompletion() throws {
        try takeEvents { ledger.isComplete }
        try checkInterruption()
        if !ledger.isComplete { throw DemoFailure("Vigil left before everything was in place") }
    }

    // MARK: Going down

    /// Asks the guest for a transition, sees it through, and has everything in place again afterwards, unless the guest
    /// did not survive it.
    /// - Parameter comesBack: the guest is booted anew after a shutdown.
    func pass(_ passage: DemoPassage, by caller: String, comesBack: Bool = true) throws -> DemoVerdict {
        guard let guest else { throw DemoFailure("there is no guest") }
        var verdict = DemoVerdict(passage: passage, isGuarded: setup.isGuarded, end: .unclear("nothing happened"))
        for event in session?.take() ?? [] { ledger.take(event) }
        // What went wrong since the last transition counts, too.
        verdict.problems = ledger.problems
        ledger.begin()
        try guest.console.run(passage == .refusal ? "refuse on" : "refuse off")
        let command = passage.command(by: caller)
        setup.note("guest> \(command)")
        let call = try guest.console.start(command)
        do {
            verdict.end = try follow(passage, guest, call)
            if case .result = verdict.end {
                if passage == .shutdown && comesBack { try boot() }
                if setup.isGuarded && session != nil { try checkPool(&verdict) }
            } else {
                try endGuest()
            }
        } catch {
            try checkInterruption()
            guard let failure = error as? DemoFailure else { throw error }
            verdict.end = .unclear(failure.description)
            try endGuest()
        }
        if setup.isGuarded {
            verdict.problems += ledger.problems
            if ledger.withdrawn != ledger.agents { verdict.problems.append("agents stayed in the guest") }
        } else {
            verdict.problems = []
        }
        (verdict.away, verdict.back) = (ledger.away, ledger.back)
        ledger.begin()
        return verdict
    }

    /// Sees a transition through.
    private func follow(_ passage: DemoPassage, _ guest: BundledGuestMachine, _ call: Int) throws -> DemoVerdict.End {
        if passage.isSleep {
            let woke = try QEMUOperator(.unix(path: guest.operatorSocket)).wakeWhenAsleep(
                within: .seconds(60),
                unless: { guest.console.isThere(replyTo: call, orLineContaining: [Self.bugCheck]) })
            if woke { setup.note("operator: system_wakeup") }
        }
        let lines = [Self.bugCheck] + (passage == .reboot ? [Self.ready] : [])
        let happening = try guest.console.wait(forReplyTo: call, orLineContaining: lines)
        try checkInterruption()
        switch happening {
        case .line(let line) where line.contains(Self.bugCheck): return bugCheck(line)
        case .line(let line):
            setup.note("guest: \(line)")
            try prepare(guest)
        case .reply(let reply):
            setup.note("guest: \(reply.result)")
            guard passage.returns else { throw DemoFailure("the guest stayed, and answered \(reply.result)") }
            let status: UInt64 = passage == .refusal ? 0xc000_02d3 : 0
            if reply["status"] != status { throw DemoFailure("the guest answered \(reply.result)") }
        case .closed:
            if passage.returns || passage == .reboot { throw DemoFailure("the machine ended") }
            try takeEvents { false }
            ledger.end()
        }
        try takeEvents { ledger.outcome != nil }
        guard let outcome = ledger.outcome else { throw DemoFailure("Vigil left and saw no outcome") }
        switch passage {
        case .sleep, .hybridSleep, .refusal: try awaitCompletion()
        case .hibernation: if let code = try resume(call) { return .bugCheck(code) }
        case .reboot: try awaitCompletion()
        case .shutdown: break
        }
        return .result(outcome)
    }

    /// Has the guest that hibernated come back in a new QEMU, and puts everything in place.
    /// - Returns: the code of the bug check, where it does not get that far.
    private func resume(_ call: Int) throws -> UInt32? {
        setup.note("a new QEMU with the same disk")
        let guest = try start()
        switch try guest.console.wait(orLineContaining: [Self.bugCheck, Self.awake, Self.ready]) {
        case .line(let line) where line.contains(Self.bugCheck):
            if case .bugCheck(let code) = bugCheck(line) { return code }
            throw DemoFailure("the guest crashed")
        case .line(let line) where line.contains(Self.awake): setup.note("guest: \(line)")
        case .line: throw DemoFailure("the guest was reset when it should have come back")
        default: throw DemoFailure("the machine ended when the guest should have come back")
        }
        let reply = try guest.console.reply(to: call)
        if reply["status"] != 0 { throw DemoFailure("the guest answered \(reply.result)") }
        try attach(guest)
        try awaitCompletion()
        return nil
    }

    private func bugCheck(_ line: String) -> DemoVerdict.End {
        setup.note("guest: \(line)")
        let digits = line.components(separatedBy: Self.bugCheck).last ?? ""
        return UInt32(digits, radix: 16).map { .bugCheck($0) } ?? .unclear(line)
    }

    /// Ends the machine, and the session with it.
    func endGuest() throws {
        if let guest, guest.process.isRunning, session != nil {
            try? QEMUOperator(.unix(path: guest.operatorSocket)).quit()
        }
        try takeEvents { false }
        ledger.end()
        guest?.process.kill()
        guest = nil
    }

    // MARK: The guest's memory

    /// The pool's blocks by tag.
    private func blocks(_ guest: BundledGuestMachine) throws -> Pool {
        var pool: Pool = [:]
        for line in try guest.console.run("pool").lines {
            let words = line.split(separator: " ")
            guard let tag = words.first(where: { $0.hasPrefix("tag=") })?.dropFirst("tag=".count),
                let count = words.first(where: { $0.hasPrefix("blocks=") }).flatMap({
                    Int($0.dropFirst("blocks=".count))
                })
            else { continue }
            pool[String(tag)] = count
        }
        return pool
    }

    /// The agents that are there are all that Vigil has in the pool, and nothing else has grown since the boot but for
    /// the agents' threads.
    private func checkPool(_ verdict: inout DemoVerdict) throws {
        guard let guest else { return }
        try guest.console.run("load off")
        // Threads of the load's are still on their way out.
        let deadline = ContinuousClock.now + Self.settling
        var growth: [String] = []
        repeat {
            let now = try blocks(guest)
            var allowed = pool
            allowed[Self.tag] = ledger.deployed.count
            allowed[Self.threadTag, default: 0] += ledger.deployed.count
            growth = now.sorted { $0.key < $1.key }.filter { $0.value > allowed[$0.key] ?? 0 }.map {
                "\($0.value) blocks of the pool with the tag \($0.key), and no more than \(allowed[$0.key] ?? 0) explained"
            }
            if now[Self.tag] ?? 0 < ledger.deployed.count {
                growth.append("\(ledger.deployed.count) agents, but \(now[Self.tag] ?? 0) blocks")
            }
        } while !growth.isEmpty && ContinuousClock.now < deadline
        verdict.problems += growth
        try guest.console.run("load on")
    }
}
