import Agents
import Detours
import FoundationEssentials
import HypervisorInterface
import PowerTransitions
import Protections
import Synchronization
import WindowsGuest
import X86

/// What the engine is to do.
public struct EngineOptions {
    /// How long to wait for a kernel that is not there yet; nil for as long as it takes.
    public var wait: Duration? = .seconds(60)
    /// How long something that runs and is no Windows is given to become one: a boot loader may.
    public var patienceWithStrangers = Duration.seconds(5)
    public var patterns: [FunctionPatterns] = []
    public var guardOptions = PowerGuardOptions()
    /// How the power function is intercepted.
    public var interception = Interception.breakpoint
    /// The guest's code may be changed where the guest can see it: the inline detour needs this.
    public var allowVisiblePatches = false
    /// What runs in the guest while Vigil is attached.
    public var agents: Set<AgentKind> = []
    /// Changes that the page-table filter tells of are told while the vCPU that made them stands, as long as a debug
    /// register is left for that.
    public var reportsAtOnce = false
    /// What is protected while Vigil is attached.
    public var protections: Set<ProtectionKind> = []
    /// The names of images whose processes `ProtectionKind.userCode` protects.
    public var protectedProcesses: [String] = []
    /// Agents are taken out before a transition. Off, the guest goes down with them in it, which may be its end: to
    /// show what that is for.
    public var withdrawsAgents = true
    /// Takes wishes while the engine runs.
    public var control: EngineControl?
    /// Where threads are borrowed that take the agents out before a transition.
    public var withdrawalPlace = BorrowingPlace.powerCall
    /// How long each step of an agent's may take.
    public var agentDeadlines = AgentManager.Deadlines()
    /// How held callers wait.
    public var waiting = WaitingWay.delay
    /// Names the session in its events, and in records of hibernations.
    public var session = Self.newSession()
    /// Where hibernations are recorded, and looked for on attaching; nil for nowhere.
    public var journal: (any HibernationJournal)?
    /// Starts a command for each request whose caller is held; the hold ends with it, if not before. A command
    /// that outlasts the hold is ended.
    public var startHoldCommand: HoldCommandStart?

    public init() {}

    /// A name for a session that no other has.
    public static func newSession() -> String { UUID().uuidString.lowercased() }
}

/// The engine: owns what is known of one guest, takes one event at a time, and calls the floors below.
///
/// Synchronous and single-threaded: an event comes in, effects go out. It runs until the machine ends or
/// somebody interrupts its wait.
public final class Engine {
    /// How often a guest without a kernel is looked at. Nothing tells when a kernel has come up.
    static let surveyInterval = Duration.milliseconds(50)
    /// How long held callers may take to come out of the handler when Vigil leaves.
    static let leavingTimeout = Duration.seconds(2)

    private let machine: any ControllableMachine
    private let effects: GuestEffects
    /// What it does now: as it was told at first, and by wishes since.
    public private(set) var options: EngineOptions
    private let report: (EngineEvent) -> Void
    private var powerGuard: PowerGuard?
    private var deployment: Deployment?
    private let commands: HoldCommands?
    private var debugRegisters: DebugRegisterTable
    private var hasControl = false
    /// The machine stands because one of our breakpoints stopped it.
    private var isAtStop = false
    /// The machine said that it powers off: its end is no surprise.
    private var isPoweringOff = false
    private var wakeCheck = WakeCheck()
    /// Of earlier boots in this session.
    private var earlierCalls = CallCounts()
    private var lastRequest = 0
    private let publishedCalls = Mutex(CallCounts())

    /// The power function's calls so far, over all boots of this session. Safe to read from any thread: a
    /// guest that runs on after a call finds it counted.
    public var calls: CallCounts { publishedCalls.withLock { $0 } }

    public init(_ machine: any ControllableMachine, options: EngineOptions, report: @escaping (EngineEvent) -> Void) {
        self.machine = machine
        self.options = options
        self.report = report
        commands = options.startHoldCommand.map { HoldCommands(start: $0, report: report) }
        effects = GuestEffects(machine: machine)
        debugRegisters = DebugRegisterTable(effects)
        effects.afterPausing = { [unowned self] () throws(HypervisorError) in try lookForAccesses() }
    }

    /// A hypervisor may forget a stop that it owes when it is told to pause in the same moment, but not the access: a
    /// vCPU has just returned, or changed an entry, and nobody would ever say so.
    private func lookForAccesses() throws(HypervisorError) {
        guard powerGuard != nil, debugRegisters.watchesAccesses else { return }
        for index in 0..<machine.vcpuCount {
            let vcpu = VCPU(index)
            let registers = try machine.registers(of: vcpu)
            do throws(DetourError) {
                try lookForAccess(vcpu, registers)
            } catch {
                if case .hypervisor(let error) = error { throw error }
                report(.warning("an access was not followed up: \(error)"))
            }
        }
        publishCalls()
    }

    /// Handles a vCPU that may just have accessed what is watched, whether or not its stop was reported.
    private func lookForAccess(_ vcpu: VCPU, _ registers: Registers) throws(DetourError) {
        if try handleAccess(vcpu, registers) || !debugRegisters.watchesAccesses { return }
        // Somebody else's access, perhaps: one who only reads an entry is known to nobody here.
        let next = try control { () throws(HypervisorError) in
            try effects.settleAccess(of: vcpu, at: registers) ? try machine.registers(of: vcpu) : nil
        }
        // That was an instruction, which may have made an access of its own.
        if let next { _ = try handleAccess(vcpu, next) }
    }

    private func handleAccess(_ vcpu: VCPU, _ registers: Registers) throws(DetourError) -> Bool {
        if try deployment?.handleAccess(vcpu, registers) == true { return true }
        return try powerGuard?.handleAccess(vcpu, registers) ?? false
    }

    /// Attaches to the guest and stays until the machine ends or the wait is interrupted.
    ///
    /// However it ends, nothing of Vigil is left in the guest; where this throws and could not clean up any
    /// more, the guardian does.
    /// - Returns: why it ended.
    @discardableResult
    public func run() throws(EngineError) -> Detachment.Reason {
        defer { endCommands() }
        do throws(EngineError) {
            return try stay()
        } catch {
            // A connection that the guardian closed looks like one that the machine closed.
            let loss = error.hypervisorError == nil ? nil : machine.lossOfControl
            if loss == .takenOver { throw .hypervisor(.takenOver) }
            if loss == nil, hasControl, case .gone? = error.hypervisorError, let reason = lastWords() {
                try leave(reason, quietly: false)
                return reason
            }
            if loss != nil { effects.abandonWitnesses() }
            // Whatever went wrong, leave in good order if that still can be done.
            if hasControl {
                do throws(EngineError) { try leave(.asked, quietly: true) } catch { effects.abandonWitnesses() }
            }
            throw loss.map { .hypervisor($0) } ?? error
        }
    }

    /// The machine ended in the middle of something. What it said before that counts as it does at any other time.
    /// - Returns: why it ended; nil where it did not.
    private func lastWords() -> Detachment.Reason? {
        while let event = try? machine.nextEvent(until: .now) {
            switch event {
            case .host(.reset), .stop, .descriptorReady, .interrupted: break
            case .host(let event): try? handle(event)
            case .gone:
                guard case .end(let reason)? = try? handle(event) else { return nil }
                return reason
            }
        }
        return nil
    }

    private enum Turn {
        case goOn
        case end(Detachment.Reason)
    }

    private func stay() throws(EngineError) -> Detachment.Reason {
        var giveUpAt: Deadline? = options.wait.map { .now + $0 }
        while true {
            if powerGuard == nil {
                if case .end(let reason) = try attach(giveUpAt: giveUpAt) {
                    try leave(reason, quietly: false)
                    return reason
                }
                // After a reset the same guest comes up again, however long its operator lets it take.
                giveUpAt = nil
            }
            let due = try detour { () throws(DetourError) in
                [try powerGuard?.tick(), try deployment?.tick()].compactMap(\.self).min()
            }
            try followHolds()
            if let loss = wakeCheck.look(machine) { report(.warning(loss)) }
            let deadline = [due, commands?.nextDeadline, wakeCheck.nextLook].compactMap(\.self).reduce(
                .now + .seconds(1), min)
            if let event = try host({ () throws(HypervisorError) in try machine.nextEvent(until: deadline) }),
                case .end(let reason) = try handle(event)
            {
                try leave(reason, quietly: false)
                return reason
            }
        }
    }

    // MARK: Attaching

    /// Waits for a kernel, and arms it.
    private func attach(giveUpAt: Deadline?) throws(EngineError) -> Turn {
        var lastReason: String?
        var strangerSince: Deadline?
        while true {
            do throws(EngineError) {
                try arm(GuestSurvey(machine, patterns: options.patterns))
                return .goOn
            } catch {
                guard case .discovery(let problem) = error else { throw error }
                let time = ContinuousClock.now
                if problem.canBeRetried {
                    strangerSince = nil
                } else {
                    strangerSince = strangerSince ?? time
                    if giveUpAt != nil, let since = strangerSince, time - since > options.patienceWithStrangers {
                        throw error
                    }
                }
                if let giveUpAt, time >= giveUpAt { throw error }
                if lastReason != problem.description {
                    lastReason = problem.description
                    report(.waiting(reason: problem.description))
                }
            }
            try followHolds()
            let next = ContinuousClock.now + Self.surveyInterval
            while let event = try host({ () throws(HypervisorError) in try machine.nextEvent(until: next) }) {
                if case .end(let reason) = try handle(event) { return .end(reason) }
            }
        }
    }

    private func arm(_ survey: GuestSurvey) throws(EngineError) {
        let found = try host { () throws(HypervisorError) in try machine.runState() }
        let pausedBefore = effects.pausedTime
        let slack = try? survey.slack.get().address
        let inline = try inlineDetour(survey)
        let programs = try agentPrograms(survey.kernel)
        // Who waits in the handler keeps it in the guest while another caller is let in.
        let hasToBeBare =
            !programs.isEmpty || inline != nil && survey.means.allowDelays
            || !DetourHandler.isFor(survey.kernel.architecture)
        let function = PatchlessDetour(
            entry: survey.powerFunction.address, effects: effects, debugRegisters: debugRegisters,
            memory: survey.kernel.memory, waiting: hasToBeBare ? .delay : options.waiting, slack: slack,
            means: survey.means, inline: inline)
        var failure: DetourError?
        let armFunction = { () throws(HypervisorError) in
            do throws(DetourError) { try function.arm() } catch { failure = error }
        }
        if hasControl {
            try host { () throws(HypervisorError) in try effects.withPaused(armFunction) }
        } else {
            try host { () throws(HypervisorError) in try effects.takeControl(armFunction) }
            hasControl = true
        }
        if let failure {
            // What is half there, the guardian takes back.
            if case .inline(.unfinished) = failure {
                effects.abandonWitnesses()
                hasControl = false
            }
            throw .detour(failure)
        }

        let hibernations = HibernationWatch(survey, machine: machine.identity, options: options, report: report)
        let callers = CallerReader(kernel: survey.kernel, offsets: survey.offsets)
        powerGuard = PowerGuard(
            detour: function, callers: callers,
            reentryIsProved: survey.reentryIsProved, options: options.guardOptions, lastID: lastRequest,
            report: hibernations.report)
        powerGuard?.warn = { [report] in report(.warning($0)) }
        report(
            .attached(
                Attachment(
                    session: options.session, machine: machine.identity, kernel: survey.kernel.identity,
                    powerFunction: survey.powerFunction,
                    mechanism: inline?.armed.map { .inlineDetour(bytes: $0.patch.count, handler: $0.handlerAddress) }
                        ?? .patchless,
                    memoryAccess: machine.memoryAccess, runState: found, paused: effects.pausedTime - pausedBefore)))
        hibernations.reportAwakening()
        try deploy(programs, survey, function, callers)
    }

    /// - Throws: where one of those that were asked for may not be deployed, before anything is stopped or changed.
    private func agentPrograms(_ kernel: WindowsKernel) throws(EngineError) -> [any AgentProgram] {
        do throws(AgentError) {
            var programs: [any AgentProgram] = []
            // With a way of wishing, any may be wished for later.
            for kind in AgentKind.allCases where options.agents.contains(kind) || options.control != nil {
                // Asked for later, it is not there: nothing to keep all others out for.
                if !kind.isFor(kernel), !options.agents.contains(kind) { continue }
                let program = try kind.makeProgram(kernel)
                if program.patchesCode, !options.allowVisiblePatches, options.agents.contains(kind) {
                    throw .visiblePatches(agent: program.name)
                }
                programs.append(program)
            }
            return programs
        } catch {
            throw .agent(error)
        }
    }

    /// Arms what is to be protected, and asks for the agents to be deployed, which happens when a thread comes by.
    private func deploy(
        _ programs: [any AgentProgram], _ survey: GuestSurvey, _ function: PatchlessDetour, _ callers: CallerReader
    ) throws(EngineError) {
        guard !programs.isEmpty || !options.protections.isEmpty || options.control != nil, let current = powerGuard
        else { return }
        let functions: AgentFunctions
        do throws(DiscoveryError) {
            functions = programs.isEmpty ? .none : try AgentFunctions(of: survey.kernel)
        } catch {
            throw .discovery(error)
        }
        let agents = AgentManager(
            programs, kernel: survey.kernel, functions: functions, effects: effects,
            allowVisiblePatches: options.allowVisiblePatches,
            report: { [unowned self] in
                report(.agent($0))
                if case .report(_, .translationChanged(let change)) = $0 {
                    self.deployment?.protections.check(page: change.page)
                }
            })
        agents.deadlines = options.agentDeadlines
        agents.withdrawalPlace = options.withdrawalPlace
        let protections = ProtectionSet(
            machine, kernel: survey.kernel, offsets: survey.offsets,
            ownPatches: { [unowned function, unowned agents] in function.ownPatches + agents.ownPatches })
        let watch = ProtectionWatch(protections, report: { [report] in report(.protection($0)) })
        let filter = programs.lazy.compactMap { $0 as? PageTableFilterAgent }.first
        let deployment = Deployment(
            agents: agents, filter: filter, kernel: survey.kernel, protections: watch,
            withdraws: options.withdrawsAgents, reportsAtOnce: options.reportsAtOnce, detour: function,
            callers: callers, dispatcher: try? survey.serviceTable.get().dispatcher,
            bugCheck: survey.bugCheck?.address, report: report)
        self.deployment = deployment
        for kind in ProtectionKind.allCases where options.protections.contains(kind) { _ = protect([kind], true) }
        for program in programs where options.agents.contains(where: { $0.rawValue == program.name }) {
            want(program.name, true)
        }
        current.participant = deployment
    }

    /// - Returns: false where that was refused.
    private func protect(_ kinds: Set<ProtectionKind>, processes: [String]? = nil, _ isWanted: Bool) -> Bool {
        do throws(ProtectionError) {
            if isWanted {
                try deployment?.protections.arm(kinds, processes: processes ?? options.protectedProcesses)
            } else {
                try deployment?.protections.disarm(kinds)
            }
            return true
        } catch {
            report(.protection(.refused(error.description)))
            return false
        }
    }

    private func want(_ agent: String, _ isWanted: Bool) {
        do throws(AgentError) {
            try deployment?.want(agent, isWanted)
        } catch {
            report(.agent(.failed(agent: agent, reason: error.description)))
        }
    }

    /// Does what was wished for since the last look.
    private func fulfilWishes() throws(EngineError) {
        for wish in options.control?.take() ?? [] {
            switch wish {
            case .agent(let kind, let isWanted):
                options.agents.formSymmetricDifference(options.agents.contains(kind) == isWanted ? [] : [kind])
                try whilePaused { () throws(DetourError) in want(kind.rawValue, isWanted) }
            case .protect(let kinds, let processes, let isWanted):
                guard protect(kinds, processes: processes, isWanted) else { continue }
                // The next boot is to be protected as this one is.
                if isWanted { options.protections.formUnion(kinds) } else { options.protections.subtract(kinds) }
                options.protectedProcesses += processes.filter { !options.protectedProcesses.contains($0) }
            case .notice(let notice): try detour { () throws(DetourError) in try deployment?.handle(notice) }
            }
        }
    }

    /// The jump to intercept by, where that was asked for.
    /// - Throws: what is known to prevent it, before anything is stopped or changed.
    private func inlineDetour(_ survey: GuestSurvey) throws(EngineError) -> InlineDetour? {
        guard options.interception == .detour else { return nil }
        do throws(InlineDetourError) {
            guard options.allowVisiblePatches else { throw .visible }
            let inline = try survey.inlineDetour(effects, allowVisiblePatches: true)
            _ = try inline.plan()
            return inline
        } catch {
            throw .detour(.inline(error))
        }
    }

    // MARK: Events

    private func handle(_ event: MachineEvent) throws(EngineError) -> Turn {
        switch event {
        case .stop: try handleStop()
        case .host(let event): try handle(event)
        case .descriptorReady:
            try followHolds()
            try fulfilWishes()
        case .interrupted: return .end(.asked)
        case .gone(let reason):
            if powerGuard?.machineEnded() == true { isPoweringOff = true }
            return .end(isPoweringOff ? .machineEnded : .machineLost(reason))
        }
        return .goOn
    }

    /// At a stop every vCPU is looked at: several can have arrived at once.
    private func handleStop() throws(EngineError) {
        effects.noteStop()
        isAtStop = true
        if let powerGuard {
            for index in 0..<machine.vcpuCount {
                let vcpu = VCPU(index)
                let registers = try host { () throws(HypervisorError) in try machine.registers(of: vcpu) }
                try detour { () throws(DetourError) in
                    if let deployment, try deployment.handleStop(vcpu, registers) { return }
                    if registers.rip == powerGuard.detour.stopAddress.rawValue {
                        try powerGuard.handlePowerStateChange(vcpu, registers)
                    } else {
                        try lookForAccess(vcpu, registers)
                    }
                }
            }
        }
        publishCalls()
        try resumeFromStop()
    }

    private func resumeFromStop() throws(EngineError) {
        isAtStop = false
        try host { () throws(HypervisorError) in try effects.resumeFromStop() }
    }

    private func publishCalls() {
        let total = powerGuard.map { earlierCalls + $0.counts } ?? earlierCalls
        publishedCalls.withLock { $0 = total }
    }

    private func handle(_ event: HostEvent) throws(EngineError) {
        if case .poweredOff = event { isPoweringOff = true }
        wakeCheck.note(event)
        guard let current = powerGuard else { return }
        current.handle(event)
        deployment?.handle(event)
        if case .guestPanicked = event, let deployment {
            try whilePaused { () throws(DetourError) in try deployment.handleBugCheck() }
        }
        guard case .reset = event else { return }
        // Breakpoints outlive a reset, and would stop whatever comes up at those addresses.
        try forget(current)
    }

    private func forget(_ current: PowerGuard) throws(EngineError) {
        try whilePaused { () throws(DetourError) in try current.forgetEverything() }
        try detour { () throws(DetourError) in try deployment?.forgetEverything() }
        deployment = nil
        addCalls(of: current)
        powerGuard = nil
    }

    /// Runs `body` while the machine stands.
    private func whilePaused(_ body: () throws(DetourError) -> Void) throws(EngineError) {
        let result = try host { () throws(HypervisorError) in try effects.attemptPaused(body) }
        try detour { () throws(DetourError) in try result.get() }
    }

    private func addCalls(of current: PowerGuard) {
        earlierCalls = earlierCalls + current.counts
        lastRequest = current.lastRequest
    }

    // MARK: Commands

    /// Starts and ends the commands that callers are held for, and lets callers go whose commands have ended.
    private func followHolds() throws(EngineError) {
        machine.watchedDescriptors = [options.control?.descriptor].compactMap(\.self)
        guard let commands else { return }
        for (id, reason) in commands.follow(powerGuard?.waitingRequests ?? []) {
            try detour { () throws(DetourError) in try powerGuard?.release(id, because: reason) }
        }
        machine.watchedDescriptors += commands.descriptors
    }

    private func endCommands() {
        machine.watchedDescriptors = []
        commands?.endAll()
    }

    // MARK: Leaving

    private func leave(_ reason: Detachment.Reason, quietly: Bool) throws(EngineError) {
        var callersLeft = 0
        var handlerLeft: String?
        if hasControl, case .asked = reason {
            if let current = powerGuard {
                try detour { () throws(DetourError) in try current.detour.finishInterruptedWork() }
                // An error while a stop was handled: callers come back in a guest that runs.
                if isAtStop && current.heldCallers > 0 { try resumeFromStop() }
                if let deployment { try whilePaused { () throws(DetourError) in try deployment.leave() } }
                callersLeft = try letCallersOut(current)
                try letAgentsOut()
            }
            if callersLeft > 0 && powerGuard?.detour.waiting == .delay && !effects.witnesses.isEmpty {
                // Their registers are known to Vigil and its guardian only, which stays until they have them.
                effects.abandonWitnesses()
                hasControl = false
            } else {
                handlerLeft = try takeEverythingOut()
                // An error while a stop was handled: nothing else would ever let the guest run on.
                if isAtStop { try resumeFromStop() }
            }
        }
        if hasControl {
            hasControl = false
            try host { () throws(HypervisorError) in try effects.giveUpControl() }
        }
        let open = powerGuard?.openTransitions ?? 0
        if let current = powerGuard { addCalls(of: current) }
        powerGuard = nil
        deployment = nil
        endCommands()
        if quietly { return }
        report(
            .detached(
                Detachment(
                    reason: reason, calls: earlierCalls, effects: effects.counts, callersLeft: callersLeft,
                    handlerLeft: handlerLeft, openTransitions: open)))
    }

    /// Removes what would stop the guest, the jump, and each handler if nobody is in it.
    /// - Returns: why the inline detour's handler had to stay, where it had to.
    private func takeEverythingOut() throws(EngineError) -> String? {
        var failure: DetourError?
        var handlerLeft: String?
        let takeOut = { () throws(HypervisorError) in
            try self.effects.removeAllSites()
            do throws(DetourError) {
                handlerLeft = try self.powerGuard?.detour.removePatch()
                try self.powerGuard?.detour.removeUnusedHandler()
            } catch {
                failure = error
            }
        }
        // A breakpoint may stop the guest at the very moment: that call is let on first.
        while try !host({ () throws(HypervisorError) in try effects.withPausedUnlessStopped(takeOut) }) {
            let event = try host { () throws(HypervisorError) in try machine.nextEvent(until: .now + .seconds(1)) }
            switch event {
            case .stop: try handleStop()
            // A reset, too: what is to be taken out is gone with it.
            case .host(let event): try handle(event)
            case .descriptorReady: try followHolds()
            case .gone: return nil
            case .interrupted, nil: break
            }
        }
        if let failure { throw .detour(failure) }
        return handlerLeft
    }

    /// Waits until agents that leave by themselves have left.
    private func letAgentsOut() throws(EngineError) {
        let deadline = ContinuousClock.now + Self.leavingTimeout
        while let deployment, deployment.agents.lookAtReleased() > 0, ContinuousClock.now < deadline {
            // Nothing tells when they have: they say so in memory.
            let soon = ContinuousClock.now + .milliseconds(5)
            switch try host({ () throws(HypervisorError) in try machine.nextEvent(until: soon) }) {
            case .stop: try handleStop()
            case .host(let event): try handle(event)
            case .descriptorReady: try followHolds()
            case .gone: return
            case .interrupted: break
            case nil:
                let state = try host { () throws(HypervisorError) in try machine.runState() }
                if !state.isRunning && state != .stoppedByDebugger { return }
            }
        }
    }

    /// Releases held callers and waits until they have come out of the handler.
    /// - Returns: how many have not: the guest stands, or its waiting threads do not get to run.
    private func letCallersOut(_ current: PowerGuard) throws(EngineError) -> Int {
        try detour { () throws(DetourError) in try current.releaseAll() }
        try followHolds()
        // Without a guardian that callers in delays could be left to, only Vigil can give them their registers.
        let mustStay = current.detour.waiting == .delay && effects.witnesses.isEmpty
        let patience =
            deployment?.isOutstanding == true
            ? options.agentDeadlines.withdrawal + Self.leavingTimeout : Self.leavingTimeout
        let deadline = ContinuousClock.now + (mustStay ? .seconds(3600) : patience)
        while current.heldCallers > 0 && ContinuousClock.now < deadline {
            let soon = min(deadline, .now + .milliseconds(100))
            switch try host({ () throws(HypervisorError) in try machine.nextEvent(until: soon) }) {
            case .stop: try handleStop()
            case .host(let event):
                try handle(event)
                // A reset: nobody waits any more.
                if powerGuard == nil { return 0 }
            case .descriptorReady: try followHolds()
            case .gone: return current.heldCallers
            case .interrupted: break
            case nil:
                // Nobody comes out of a handler that nobody executes.
                let state = try host { () throws(HypervisorError) in try machine.runState() }
                if !state.isRunning && state != .stoppedByDebugger && !mustStay { return current.heldCallers }
            }
        }
        return current.heldCallers
    }
}
