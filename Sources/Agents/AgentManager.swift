import Detours
import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// Puts agents into the guest and takes them out again, one at a time.
///
/// Calls of the guest's functions (its allocator's, the agents' own) are made by threads that somebody has borrowed
/// and offers here: `nextCall` says what such a thread is to do, `returned` takes what came of it. Every step has a
/// deadline; whatever happens, each agent ends in a state of rest, and who waits for it is told.
public final class AgentManager {
    public enum State: Equatable, Sendable {
        /// Not in the guest.
        case absent
        /// Being put there.
        case injecting
        case deployed
        /// Nothing leads to it any more, but somebody is still in it.
        case draining
        /// Nobody is in it; its memory is being given back.
        case unloading
        /// Not in the guest, for this reason.
        case failed(String)
        /// Nothing leads to it, but its memory could not be given back.
        case neutralised
    }

    /// How long each step may take.
    public struct Deadlines: Equatable, Sendable {
        /// Until a thread comes by that can be borrowed.
        public var thread = Duration.seconds(30)
        /// One call of a guest's function.
        public var call = Duration.seconds(5)
        /// From the wish to take it out until it is out.
        public var withdrawal = Duration.seconds(5)

        public init() {}
    }

    /// How long a sign of life of the host's is good for. In rounds of an agent's thread it is what that makes.
    public static let lease = Duration.seconds(10)
    /// How often it is renewed.
    public static let leaseInterval = Duration.milliseconds(500)

    /// HLT: whoever executes it waits for the interrupt that stops him for good. Intel SDM volume 2.
    static let halt: UInt8 = 0xf4
    /// Within this a crashing guest has stopped its other processors.
    static let crashTime = Duration.milliseconds(200)

    /// "Vigl".
    static let poolTag: UInt32 = 0x6c67_6956
    /// POOL_TYPE NonPagedPool, memory that code can run in.
    static let nonPagedPool: UInt64 = 0

    final class Agent {
        /// What the guardian knows it by.
        let number: Int
        let program: any AgentProgram
        var state = State.absent
        var memory: AgentMemory?
        /// It shall be in the guest.
        var isWanted = false
        var stepDeadline: Deadline
        var began: Deadline
        var nextCollection: Deadline
        /// It is on its way in, but shall not stay.
        var isCancelled = false
        /// What went wrong on the way in.
        var failure: AgentError?
        /// Its thread was told to go.
        var isSignalled = false
        /// Nothing of the kernel's leads to it.
        var isDetached = true
        /// It was not at its place when it was looked for last.
        var isMissed = false

        init(_ number: Int, _ program: any AgentProgram, now: Deadline) {
            self.number = number
            self.program = program
            stepDeadline = now
            began = now
            nextCollection = now
        }
    }

    /// A call that a borrowed thread is making.
    struct Call {
        enum Purpose { case allocate, start, signal, free, discard }
        var agent: Agent
        var purpose: Purpose
        /// What it is about; nil for an allocation.
        var memory: AgentMemory?
        var place: BorrowingPlace
        var deadline: Deadline
        /// Which of the threads that are away makes it; nil until that one has been sent off.
        var slot: Int?
        /// Its deadline has passed; what it returns is only cleaned up after.
        var isOverdue = false
    }

    /// Memory that calls got, or left, which came back after they had been given up: no agent's any more.
    struct Leftover {
        var agent: Agent
        var memory: AgentMemory
        /// A thread of the agent's may be in it still, which was told to leave.
        var isDraining: Bool
        /// It was reported to be there.
        var isReported: Bool
        var deadline: Deadline
    }

    public let effects: GuestEffects
    public var deadlines = Deadlines()
    /// Agents that change code are not deployed without this.
    public let allowVisiblePatches: Bool
    /// Where threads are borrowed for a withdrawal that callers wait for.
    public var withdrawalPlace = BorrowingPlace.powerCall

    let kernel: WindowsKernel
    let functions: AgentFunctions
    let report: (AgentEvent) -> Void
    let now: () -> Deadline
    var agents: [Agent] = []
    var calls: [Call] = []
    /// Memory of agents in a crashing guest that is yet to be zeroed.
    var halted: [(memory: AgentMemory, due: Deadline)] = []
    /// Those that were told to leave by themselves.
    var leaving: [(agent: Agent, memory: AgentMemory)] = []
    var leftovers: [Leftover] = []
    var leaseValue: UInt32 = 1
    var nextLease: Deadline
    /// Agents are not put into the guest now.
    var isSuspended = false

    public init(
        _ programs: [any AgentProgram], kernel: WindowsKernel, functions: AgentFunctions, effects: GuestEffects,
        allowVisiblePatches: Bool, now: @escaping () -> Deadline = { ContinuousClock.now },
        report: @escaping (AgentEvent) -> Void
    ) {
        self.kernel = kernel
        self.functions = functions
        self.effects = effects
        self.allowVisiblePatches = allowVisiblePatches
        self.now = now
        self.report = report
        nextLease = now()
        agents = programs.enumerated().map { Agent($0, $1, now: now()) }
    }

    // MARK: What is where

    public func state(of name: String) -> State? { agents.first { $0.program.name == name }?.state }

    public var names: [String] { agents.map(\.program.name) }

    /// Agents that run in the guest now.
    public var deployed: [String] { agents.filter { $0.state == .deployed }.map(\.program.name) }

    /// Something of an agent is in the guest, or on its way, that is not known to be harmless.
    public var isOutstanding: Bool {
        isCalling || agents.contains { [.deployed, .injecting, .draining, .unloading].contains($0.state) }
    }

    /// Whether anything is under way: being put in or taken out.
    public var isBusy: Bool {
        isCalling || agents.contains { [.injecting, .draining, .unloading].contains($0.state) }
    }

    /// A call is under way that is still waited for.
    var isCalling: Bool { calls.contains { !$0.isOverdue } }

    /// The kernel's bytes that agents have replaced.
    public var ownPatches: [CodePatch.Place] { agents.flatMap(\.program.ownPatches) }

    /// A thread has to be borrowed where system calls are made: something is to be called, and nobody offers himself.
    public var wantsThread: Bool { !isCalling && pendingCall() != nil }

    // MARK: Wishes

    /// Asks for an agent to be in the guest, or not to be.
    public func want(_ name: String, _ isWanted: Bool) throws(AgentError) {
        guard let agent = agents.first(where: { $0.program.name == name }) else {
            throw .unsupported("there is no agent called \(name)")
        }
        if isWanted, agent.program.patchesCode, !allowVisiblePatches { throw .visiblePatches(agent: name) }
        agent.isWanted = isWanted
        if isWanted {
            begin(agent)
        } else {
            try withdraw(agent)
        }
    }

    /// Takes everything out, for as long as `resume` is not called. The machine stands.
    public func suspend() throws(AgentError) {
        isSuspended = true
        try forEach { (agent) throws(AgentError) in try withdraw(agent) }
    }

    /// Does something with every agent, whatever goes wrong with one of them.
    /// - Throws: what went wrong first.
    func forEach(_ body: (Agent) throws(AgentError) -> Void) throws(AgentError) {
        var failures = FirstFailure()
        for agent in agents { try failures.collect { () throws(AgentError) in try body(agent) } }
        try failures.rethrow()
    }

    /// Puts what is wanted back in.
    public func resume() {
        isSuspended = false
        for agent in agents where agent.isWanted { begin(agent) }
    }

    func begin(_ agent: Agent) {
        // Where something still leads to what it has left behind, it cannot come back.
        guard !isSuspended, agent.isDetached else { return }
        switch agent.state {
        case .absent, .failed, .neutralised: break
        case .injecting, .deployed, .draining, .unloading: return
        }
        agent.state = .injecting
        agent.isCancelled = false
        agent.failure = nil
        agent.memory = nil
        agent.isSignalled = false
        agent.isMissed = false
        agent.began = now()
        agent.stepDeadline = agent.began + deadlines.thread
    }

    /// The machine stands.
    func withdraw(_ agent: Agent) throws(AgentError) {
        switch agent.state {
        case .absent, .failed, .neutralised, .draining, .unloading: return
        case .injecting:
            agent.began = now()
            agent.stepDeadline = agent.began + deadlines.withdrawal
            if isCalling(for: agent) || agent.memory != nil {
                agent.isCancelled = true
            } else {
                agent.state = .absent
            }
        case .deployed:
            agent.began = now()
            agent.stepDeadline = agent.began + deadlines.withdrawal
            agent.state = .draining
            try detach(agent)
        }
    }

    func detach(_ agent: Agent) throws(AgentError) {
        guard !agent.isDetached else { return }
        try agent.program.detach()
        agent.isDetached = true
    }

    /// - Returns: why something still leads to the agent; nil where nothing does.
    func tryToDetach(_ agent: Agent) throws(AgentError) -> AgentError? {
        if agent.isDetached { return nil }
        do throws(AgentError) {
            try whilePaused { () throws(AgentError) in try detach(agent) }
            return nil
        } catch {
            if case .hypervisor = error { throw error }
            return error
        }
    }

    func isCalling(for agent: Agent) -> Bool { calls.contains { $0.agent === agent && !$0.isOverdue } }

    // MARK: Ways to the machine

    /// Runs `body` while the machine stands.
    func whilePaused(_ body: () throws(AgentError) -> Void) throws(AgentError) {
        try hypervisor { () throws(HypervisorError) in try effects.attemptPaused(body) }.get()
    }

    func hypervisor<Value>(
        _ body: () throws(HypervisorError) -> Value
    ) throws(AgentError) -> Value {
        do throws(HypervisorError) { return try body() } catch { throw .hypervisor(error) }
    }
}
