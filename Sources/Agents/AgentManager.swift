import Detours
import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// Where a thread was borrowed that makes an agent's calls.
public enum BorrowingPlace: String, Equatable, Sendable {
    /// In the system-call dispatcher: whichever thread made the next system call.
    case systemCall = "system-call"
    /// At the power function's entry: the caller that waits anyway.
    case powerCall = "power-call"
}

/// How an agent's memory was got rid of.
public enum WithdrawalWay: Equatable, Sendable {
    /// Its thread left, and a borrowed thread gave its memory back.
    case freed(BorrowingPlace)
    /// Its thread left and gave the memory back itself.
    case byItself
    /// The guest was crashing: its pages were filled with zeroes.
    case zeroed
}

/// What becomes of agents.
public enum AgentEvent: Equatable, Sendable {
    /// It is in the guest and runs. With the time since it was asked for.
    case deployed(agent: String, base: GuestVirtualAddress, size: Int, duration: Duration, place: BorrowingPlace)
    /// Nothing of it is in the guest any more. With the time since that was asked for.
    case withdrawn(agent: String, duration: Duration, way: WithdrawalWay)
    /// Nothing leads to it any more, but its memory is still there.
    case neutralised(agent: String, base: GuestVirtualAddress, reason: String)
    /// It was not deployed.
    case failed(agent: String, reason: String)
    case report(agent: String, AgentReport)
}

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
    private static let halt: UInt8 = 0xf4
    /// Within this a crashing guest has stopped its other processors.
    private static let crashTime = Duration.milliseconds(200)

    /// "Vigl".
    static let poolTag: UInt32 = 0x6c67_6956
    /// POOL_TYPE NonPagedPool, memory that code can run in.
    static let nonPagedPool: UInt64 = 0

    private final class Agent {
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
    private struct Call {
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
    private struct Leftover {
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

    private let kernel: WindowsKernel
    private let functions: AgentFunctions
    private let report: (AgentEvent) -> Void
    private let now: () -> Deadline
    private var agents: [Agent] = []
    private var calls: [Call] = []
    /// Memory of agents in a crashing guest that is yet to be zeroed.
    private var halted: [(memory: AgentMemory, due: Deadline)] = []
    /// Those that were told to leave by themselves.
    private var leaving: [(agent: Agent, memory: AgentMemory)] = []
    private var leftovers: [Leftover] = []
    private var leaseValue: UInt32 = 1
    private var nextLease: Deadline
    /// Agents are not put into the guest now.
    private var isSuspended = false

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
    private var isCalling: Bool { calls.contains { !$0.isOverdue } }

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
    private func forEach(_ body: (Agent) throws(AgentError) -> Void) throws(AgentError) {
        var failures = FirstFailure()
        for agent in agents { try failures.collect { () throws(AgentError) in try body(agent) } }
        try failures.rethrow()
    }

    /// Puts what is wanted back in.
    public func resume() {
        isSuspended = false
        for agent in agents where agent.isWanted { begin(agent) }
    }

    private func begin(_ agent: Agent) {
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
    private func withdraw(_ agent: Agent) throws(AgentError) {
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

    private func detach(_ agent: Agent) throws(AgentError) {
        guard !agent.isDetached else { return }
        try agent.program.detach()
        agent.isDetached = true
    }

    /// - Returns: why something still leads to the agent; nil where nothing does.
    private func tryToDetach(_ agent: Agent) throws(AgentError) -> AgentError? {
        if agent.isDetached { return nil }
        do throws(AgentError) {
            try whilePaused { () throws(AgentError) in try detach(agent) }
            return nil
        } catch {
            if case .hypervisor = error { throw error }
            return error
        }
    }

    private func isCalling(for agent: Agent) -> Bool { calls.contains { $0.agent === agent && !$0.isOverdue } }

    // MARK: Calls

    /// The next call that has to be made, if one can be made now, and the memory that it is about.
    private func pendingCall() -> (agent: Agent, purpose: Call.Purpose, memory: AgentMemory?)? {
        // What is on its way out comes first.
        if let agent = agents.first(where: { $0.state == .unloading }) { return (agent, .free, agent.memory) }
        if let agent = agents.first(where: { $0.state == .draining && !$0.isSignalled }) {
            return (agent, .signal, agent.memory)
        }
        // One whose return is not waited for any more has been given back, or will be.
        if let leftover = leftovers.first(where: { leftover in
            !leftover.isDraining && !calls.contains { $0.memory?.base == leftover.memory.base }
        }) {
            return (leftover.agent, .discard, leftover.memory)
        }
        guard let agent = agents.first(where: { $0.state == .injecting }) else { return nil }
        if agent.memory == nil { return agent.isCancelled ? nil : (agent, .allocate, nil) }
        return (agent, agent.isCancelled || agent.failure != nil ? .free : .start, agent.memory)
    }

    /// Somebody has a thread, stopped where it can call functions of the guest.
    /// - Returns: what it is to do; nil where there is nothing to do for it now.
    public func nextCall(from place: BorrowingPlace) throws(AgentError) -> GuestCall? {
        guard !isCalling else { return nil }
        try lookAtDraining()
        guard let (agent, purpose, about) = pendingCall() else { return nil }
        if place == .powerCall, withdrawalPlace == .systemCall, purpose != .discard, now() < fallback(agent) {
            return nil
        }
        let guestCall: GuestCall
        switch (purpose, about) {
        case (.allocate, _):
            guestCall = GuestCall(
                functions.allocate,
                [
                    .value(Self.nonPagedPool), .value(UInt64(agent.program.image.size)),
                    .value(UInt64(Self.poolTag)),
                ], owed: .result(block(GuestVirtualAddress(0), agent.program.image.size)))
        case (.start, let memory?):
            do throws(AgentError) {
                try note(agent, try memory.trace(block(memory)))
            } catch {
                if case .hypervisor = error { throw error }
                // What was there a moment ago is gone: nothing is to be started there.
                agent.failure = error
                return try nextCall(from: place)
            }
            guestCall = GuestCall(
                memory.base + UInt64(memory.image.start), [.value(memory.base.rawValue)],
                owed: .unlessSuccessful(block(memory)))
        case (.signal, let memory?):
            try memory.store(AgentMemory.StopWish.leave.rawValue, in: .stopWanted)
            // The event, no increment of priority, no wait to follow.
            guestCall = GuestCall(
                functions.setEvent,
                [.value(memory.base.rawValue + AgentMemory.Field.event.rawValue), .value(0), .value(0)])
        case (.free, let memory?), (.discard, let memory?):
            // From here on nobody may take what lies there for an agent.
            if purpose == .free { try note(agent, nil) }
            if memory.isThere() { try memory.forgetMagic() }
            guestCall = GuestCall(
                functions.free, [.value(memory.base.rawValue), .value(UInt64(Self.poolTag))],
                owed: .unlessCalled(block(memory)))
        case (_, nil): return nil
        }
        calls.append(
            Call(agent: agent, purpose: purpose, memory: about, place: place, deadline: now() + deadlines.call))
        return guestCall
    }

    private func block(_ memory: AgentMemory) -> PoolBlock { block(memory.base, memory.image.size) }

    private func block(_ address: GuestVirtualAddress, _ size: Int) -> PoolBlock {
        PoolBlock(address: address, size: size, tag: Self.poolTag, free: functions.free)
    }

    /// The thread was sent off to make the call.
    /// - Parameter slot: what it is recognised by when it comes back.
    public func didSend(slot: Int) {
        guard let index = calls.firstIndex(where: { $0.slot == nil }) else { return }
        calls[index].slot = slot
    }

    /// Tells the guardian of an agent that it would have to get out.
    private func note(_ agent: Agent, _ trace: AgentTrace?) throws(AgentError) {
        try hypervisor { () throws(HypervisorError) in try effects.noteAgent(agent.number, trace) }
    }

    /// A withdrawal that no system call came for is made from where its caller waits.
    private func fallback(_ agent: Agent) -> Deadline { agent.stepDeadline - deadlines.withdrawal / 2 }

    /// The thread could not be sent off: nothing was called.
    public func couldNotSend() { calls.removeAll { $0.slot == nil } }

    /// Whether a thread that was borrowed for this is still of use: it can wait for the next call.
    public var keepsThread: Bool {
        !isCalling
            && (agents.contains { $0.state == .draining || $0.state == .unloading }
                || leftovers.contains { $0.isDraining })
    }

    /// A call has come back. The machine stands.
    public func returned(slot: Int, _ registers: Registers) throws(AgentError) {
        guard let index = calls.firstIndex(where: { $0.slot == slot }) else { return }
        let done = calls.remove(at: index)
        let agent = done.agent
        if done.isOverdue { return clean(up: done, registers) }
        switch done.purpose {
        case .allocate: try finishAllocation(agent, GuestVirtualAddress(registers.rax))
        case .start: try finishStart(agent, status: UInt32(truncatingIfNeeded: registers.rax), done)
        case .signal: agent.isSignalled = true
        case .free: finishFreeing(agent, done)
        case .discard: forget(leftover: done)
        }
    }

    /// A call has come back that nobody waits for any more, and the agent may be at something else by now: what the
    /// call got, or what it had to do with, is given back.
    private func clean(up done: Call, _ registers: Registers) {
        var memory = done.memory
        var isDraining = false
        switch done.purpose {
        case .allocate:
            memory = AgentMemory(
                base: GuestVirtualAddress(registers.rax), image: done.agent.program.image, memory: kernel.memory,
                effects: effects)
            if memory?.isKernelMemory() == false { return }
        case .start:
            // NTSTATUS: negative is an error, and no thread was made.
            isDraining = Int32(truncatingIfNeeded: registers.rax) >= 0
        case .signal: isDraining = true
        case .free, .discard: return forget(leftover: done)
        }
        guard let memory, !isDraining || memory.isThere() else { return }
        leftovers.append(
            Leftover(
                agent: done.agent, memory: memory, isDraining: isDraining, isReported: done.purpose != .allocate,
                deadline: now() + deadlines.thread))
    }

    /// Memory has been given back after all.
    private func forget(leftover done: Call) {
        leftovers.removeAll { $0.memory.base == done.memory?.base }
        let agent = done.agent
        guard agent.state == .neutralised, agent.memory?.base == done.memory?.base else { return }
        agent.memory = nil
        agent.state = .absent
    }

    private func finishAllocation(_ agent: Agent, _ base: GuestVirtualAddress) throws(AgentError) {
        guard base.rawValue != 0 else { return fail(agent, .allocationFailed) }
        let memory = AgentMemory(base: base, image: agent.program.image, memory: kernel.memory, effects: effects)
        if let flaw = memory.flaw() {
            agent.failure = .unusableMemory(base, flaw)
            // What no allocator gives is not given back to one.
            if !memory.isKernelMemory() { return fail(agent, .unusableMemory(base, flaw)) }
        } else if !agent.isCancelled {
            do throws(AgentError) {
                try load(agent, memory)
            } catch {
                if case .hypervisor = error { throw error }
                agent.failure = error
            }
        }
        agent.memory = memory
        if !agent.isCancelled { agent.stepDeadline = now() + deadlines.thread }
    }

    private func load(_ agent: Agent, _ memory: AgentMemory) throws(AgentError) {
        var bytes = memory.image.bytes
        func put<Value: FixedWidthInteger & BitwiseCopyable>(_ value: Value, at offset: Int) {
            withUnsafeBytes(of: value.littleEndian) { bytes.replaceSubrange(offset..<offset + $0.count, with: $0) }
        }
        // AGENT in Guest/agents/common/agent.h.
        let addresses = [
            functions.createThread, functions.terminateThread, functions.close, functions.initializeEvent,
            functions.wait, functions.free, functions.sharedData,
        ]
        for (index, address) in addresses.enumerated() { put(address.rawValue, at: 0x28 + 8 * index) }
        let interval = UInt32(clamping: max(1, agent.program.interval.milliseconds))
        let rounds =
            effects.machine.writesDataWhileRunning
            ? UInt32(clamping: Self.lease.milliseconds / Int64(interval)) : .max
        put(Self.poolTag, at: 0x60)
        put(interval, at: 0x64)
        put(rounds, at: 0x68)
        put(leaseValue, at: 0x6c)
        put(functions.returnInstruction.rawValue, at: 0xd0)
        // Nothing leads to it unless its program leads something there.
        put(UInt32(memory.image.gate == nil ? 1 : 0), at: Int(AgentMemory.Field.mayLeave.rawValue))
        try agent.program.prepare(&bytes, at: memory.base)
        // What follows the file's bytes is data.
        let zeroes = [UInt8](repeating: 0, count: memory.image.size - bytes.count)
        try memory.writeData(zeroes, at: memory.base + UInt64(bytes.count))
        try memory.writeCode(bytes, at: memory.base)
    }

    private func finishStart(_ agent: Agent, status: UInt32, _ done: Call) throws(AgentError) {
        // NTSTATUS: negative is an error.
        guard Int32(bitPattern: status) >= 0 else {
            agent.failure = .startFailed(status: status)
            if !agent.isCancelled { agent.stepDeadline = now() + deadlines.thread }
            return
        }
        guard let memory = agent.memory else { return }
        if agent.isCancelled {
            agent.state = .draining
            return
        }
        do throws(AgentError) {
            agent.isDetached = false
            try agent.program.attach(memory)
        } catch {
            // Its thread runs: it goes as one does that is not wanted any more.
            agent.failure = error
            agent.state = .draining
            agent.stepDeadline = now() + deadlines.withdrawal
            if case .hypervisor = error { throw error }
            _ = try tryToDetach(agent)
            return
        }
        agent.state = .deployed
        report(
            .deployed(
                agent: agent.program.name, base: memory.base, size: memory.image.size, duration: now() - agent.began,
                place: done.place))
    }

    private func finishFreeing(_ agent: Agent, _ done: Call) {
        let wasIn = agent.state == .unloading
        agent.memory = nil
        if let failure = agent.failure {
            fail(agent, failure)
        } else {
            agent.state = .absent
            if wasIn {
                report(
                    .withdrawn(
                        agent: agent.program.name, duration: now() - agent.began, way: .freed(done.place)))
            }
        }
        // Asked for again meanwhile.
        if agent.isWanted, agent.failure == nil { begin(agent) }
    }

    private func fail(_ agent: Agent, _ error: AgentError) {
        agent.state = .failed(error.description)
        agent.memory = nil
        report(.failed(agent: agent.program.name, reason: error.description))
    }

    // MARK: Draining

    /// Looks whether agents that were told to leave have left. The machine stands, so that what the vCPUs say is
    /// true of one instant.
    private func lookAtDraining() throws(AgentError) {
        let leaving = agents.filter { $0.state == .draining }
        if leaving.isEmpty, !leftovers.contains(where: \.isDraining) { return }
        let places = try processorsPlaces()
        for agent in leaving {
            // What goes wrong with one does not keep the others; its deadline ends that.
            do throws(AgentError) {
                try look(at: agent, places)
            } catch {
                if case .hypervisor = error { throw error }
            }
        }
        for index in leftovers.indices where leftovers[index].isDraining {
            if (try? hasLeft(leftovers[index].memory, places)) == true { leftovers[index].isDraining = false }
        }
    }

    private func look(at agent: Agent, _ places: [UInt64]) throws(AgentError) {
        guard let memory = agent.memory, try tryToDetach(agent) == nil else { return }
        if !memory.isThere() { return try noteGone(agent) }
        if try memory.load(.mayLeave) as UInt32 == 0, !places.contains(where: memory.isInGate) {
            // Who came by the gate is counted now; the agent's thread waits for them.
            try memory.store(1, in: .mayLeave)
        }
        if agent.isSignalled, try hasLeft(memory, places) { agent.state = .unloading }
    }

    private func hasLeft(_ memory: AgentMemory, _ places: [UInt64]) throws(AgentError) -> Bool {
        guard try memory.stage() == .left, try memory.inside() == 0 else { return false }
        return !places.contains(where: memory.contains)
    }

    /// An agent's thread has given its memory back, unasked: it had no sign of life for too long. What lies there now is
    /// somebody else's.
    private func noteGone(_ agent: Agent) throws(AgentError) {
        try note(agent, nil)
        let wasLeaving = agent.state == .draining
        agent.memory = nil
        let time = now()
        if let failure = agent.failure {
            fail(agent, failure)
        } else {
            agent.state = .absent
            report(
                .withdrawn(
                    agent: agent.program.name, duration: wasLeaving ? time - agent.began : .zero, way: .byItself))
            if agent.isWanted { begin(agent) }
        }
    }

    /// Where all vCPUs are, and where those were interrupted that handle an interrupt on a stack of its own (an NMI can
    /// come where interrupts are off).
    private func processorsPlaces() throws(AgentError) -> [UInt64] {
        var places: [UInt64] = []
        for index in 0..<effects.machine.vcpuCount {
            let registers = try hypervisor { () throws(HypervisorError) in
                try effects.machine.registers(of: VCPU(index))
            }
            places.append(registers.rip)
            places += InterruptStacks.interruptedPlaces(registers, in: kernel.memory)
        }
        return places
    }

    // MARK: Time

    /// Does what is due, collects what agents have to say, and says when something is due again.
    public func tick() throws(AgentError) -> Deadline? {
        let time = now()
        var failures = FirstFailure()
        try failures.collect { () throws(AgentError) in try renewLease(time) }
        try failures.collect { () throws(AgentError) in try zeroHalted(time) }
        for agent in agents {
            try failures.collect { () throws(AgentError) in try hear(agent) }
            if agent.stepDeadline <= time {
                try failures.collect { () throws(AgentError) in try passDeadline(of: agent) }
            }
        }
        for index in calls.indices where calls[index].deadline <= time && !calls[index].isOverdue {
            calls[index].isOverdue = true
            let call = calls[index]
            try failures.collect { () throws(AgentError) in try passDeadline(of: call) }
        }
        for leftover in leftovers where leftover.deadline <= time && !leftover.isReported {
            report(
                .neutralised(
                    agent: leftover.agent.program.name, base: leftover.memory.base,
                    reason: "no thread came by that could give its memory back"))
        }
        leftovers.removeAll { $0.deadline <= time }
        try failures.rethrow()
        return nextDeadline()
    }

    /// Asks an agent for what it has found out, before its turn.
    public func hear(_ name: String) throws(AgentError) {
        guard let agent = agents.first(where: { $0.program.name == name }) else { return }
        agent.nextCollection = now()
        try hear(agent)
    }

    private func nextDeadline() -> Deadline? {
        // A call that is under way has a deadline of its own.
        var next = agents.filter {
            [.injecting, .draining, .unloading].contains($0.state) && !($0.state == .injecting && isCalling(for: $0))
        }
        .map(\.stepDeadline)
        next += calls.filter { !$0.isOverdue }.map(\.deadline)
        next += leftovers.map(\.deadline)
        next += halted.map(\.due)
        let deployed = agents.filter { $0.state == .deployed }
        next += deployed.map(\.nextCollection)
        if !deployed.isEmpty { next.append(nextLease) }
        return next.min()
    }

    /// Takes what a deployed agent has to say.
    private func hear(_ agent: Agent) throws(AgentError) {
        guard let memory = agent.memory else { return }
        if agent.state == .neutralised, !agent.isDetached, try tryToDetach(agent) == nil {
            return try leaveBehind(agent, memory)
        }
        guard agent.state == .deployed, agent.nextCollection <= now() else { return }
        agent.nextCollection = now() + agent.program.collectInterval
        guard memory.isThere() else {
            // After a reset nothing is there either, and the next event says so.
            guard agent.isMissed else {
                agent.isMissed = true
                return
            }
            if let problem = try tryToDetach(agent) { throw problem }
            return try noteGone(agent)
        }
        agent.isMissed = false
        do throws(AgentError) {
            for message in try agent.program.collect(from: memory) {
                report(.report(agent: agent.program.name, message))
            }
        } catch {
            if case .hypervisor = error { throw error }
            // One that does not make sense any more is taken out.
            agent.failure = error
            try whilePaused { () throws(AgentError) in try withdraw(agent) }
        }
    }

    private func renewLease(_ time: Deadline) throws(AgentError) {
        guard nextLease <= time, effects.machine.writesDataWhileRunning else { return }
        nextLease = time + Self.leaseInterval
        leaseValue &+= 1
        for agent in agents where agent.state == .deployed {
            guard let memory = agent.memory, memory.isThere() else { continue }
            try memory.store(leaseValue, in: .lease)
        }
    }

    private func passDeadline(of agent: Agent) throws(AgentError) {
        switch agent.state {
        case .absent, .deployed, .failed, .neutralised: return
        case .injecting:
            // A call that is under way has a deadline of its own.
            if isCalling(for: agent) { return }
            if agent.memory == nil {
                fail(agent, .timedOut("no thread of the guest came by in \(deadlines.thread) that could be borrowed"))
            } else {
                try neutralise(agent, "no thread came by that could give its memory back")
            }
        case .draining:
            let reason =
                agent.isSignalled
                ? "somebody was still in it after \(deadlines.withdrawal)"
                : "no thread came by in \(deadlines.withdrawal) that could tell it to leave"
            try neutralise(agent, reason)
        case .unloading: try neutralise(agent, "no thread came by that could give its memory back")
        }
    }

    private func passDeadline(of call: Call) throws(AgentError) {
        // It was taken from whatever had no agent any more: that is not tried twice.
        if call.purpose == .discard { return }
        let reason = "a call of the guest's did not come back in \(deadlines.call)"
        if call.agent.memory == nil {
            fail(call.agent, .timedOut(reason))
        } else {
            try neutralise(call.agent, reason)
        }
    }

    /// Gives up waiting for everything that is on its way out: nothing leads to it from now on. The machine stands.
    public func giveUp(because reason: String) throws(AgentError) {
        for index in calls.indices { calls[index].isOverdue = true }
        try forEach { (agent) throws(AgentError) in
            guard [.draining, .unloading, .injecting].contains(agent.state) else { return }
            if agent.memory == nil {
                agent.state = .absent
            } else {
                try neutralise(agent, reason)
            }
        }
    }

    /// Nothing leads to the agent any more, and its thread leaves as soon as it can, by itself.
    private func neutralise(_ agent: Agent, _ reason: String) throws(AgentError) {
        guard let memory = agent.memory else { return }
        for index in calls.indices where calls[index].agent === agent { calls[index].isOverdue = true }
        let problem = try tryToDetach(agent)
        let wasLeaving = agent.failure == nil && (agent.state != .injecting || agent.isCancelled)
        agent.state = .neutralised
        if problem == nil { try leaveBehind(agent, memory) }
        let addition = problem.map { "; something still leads to it: \($0)" } ?? ""
        report(.neutralised(agent: agent.program.name, base: memory.base, reason: reason + addition))
        // Asked for again meanwhile.
        if agent.isWanted, wasLeaving { begin(agent) }
    }

    /// Nothing leads to the agent any more: its thread may leave, and gives the memory back, unless a call that is under
    /// way needs that.
    private func leaveBehind(_ agent: Agent, _ memory: AgentMemory) throws(AgentError) {
        let isInUse = calls.contains {
            $0.memory?.base == memory.base && ($0.purpose == .start || $0.purpose == .signal)
        }
        if memory.isThere(), !memory.hasSetOut() {
            let wish: AgentMemory.StopWish = isInUse ? .leave : .leaveByItself
            try? memory.store(1, in: .mayLeave)
            try? memory.store(wish.rawValue, in: .stopWanted)
        }
        try note(agent, nil)
    }

    // MARK: Ends

    /// Leaves agents to leave by themselves: nothing leads to them, and their threads give their memory back.
    /// The machine stands.
    public func release() throws(AgentError) {
        for index in halted.indices { halted[index].due = now() }
        try zeroHalted(now())
        isSuspended = true
        try forEach { (agent) throws(AgentError) in
            // A call that is under way comes back, and its thread goes on with what there is to do then.
            guard let memory = agent.memory, agent.state == .deployed || agent.state == .draining,
                !isCalling(for: agent), !memory.hasSetOut()
            else { return try withdraw(agent) }
            if try tryToDetach(agent) != nil { return try neutralise(agent, "Vigil leaves") }
            agent.began = now()
            agent.state = .absent
            try leaveBehind(agent, memory)
            leaving.append((agent, memory))
        }
    }

    /// Looks whether those have left that were released. Their memory is theirs to give back, and may be somebody
    /// else's by then: it is only read.
    /// - Returns: how many have not yet.
    public func lookAtReleased() -> Int {
        for (agent, memory) in leaving {
            // The last that a thread does in its agent, before it gives it back, is to take the magic number away.
            guard !memory.isThere() else { continue }
            report(.withdrawn(agent: agent.program.name, duration: now() - agent.began, way: .byItself))
            agent.memory = nil
            leaving.removeAll { $0.agent === agent }
        }
        return leaving.count
    }

    /// The guest crashes: no instruction of an agent's executes any more. Their pages are zeroed, so that a dump has
    /// nothing of them. The machine stands.
    public func zeroEverything() throws(AgentError) {
        isSuspended = true
        let time = now()
        for leftover in leftovers where leftover.memory.isThere() { try? zero(leftover.memory) }
        calls = []
        leftovers = []
        leaving = []
        try forEach { (agent) throws(AgentError) in
            let problem = try tryToDetach(agent)
            let memory = agent.memory
            agent.memory = nil
            let state = agent.state
            switch state {
            case .injecting, .deployed, .draining, .unloading: agent.state = .absent
            case .absent, .failed, .neutralised: break
            }
            try note(agent, nil)
            guard let memory else { return }
            // What is no agent any more was given back, or is being given back, and may be somebody else's.
            if memory.isThere() {
                try zero(memory)
                agent.state = .absent
                report(.withdrawn(agent: agent.program.name, duration: now() - time, way: .zeroed))
            } else if state == .deployed || state == .draining {
                report(.withdrawn(agent: agent.program.name, duration: now() - time, way: .byItself))
            } else if state != .neutralised {
                report(
                    .neutralised(
                        agent: agent.program.name, base: memory.base,
                        reason: "the guest crashed while its memory was being given back"))
            }
            if let problem { throw problem }
        }
    }

    /// One whose code is in nobody's way any more is zeroed at once. Where other vCPUs go on until the crash stops
    /// them, one of them could run into it: there they find but instructions to halt, for a moment.
    private func zero(_ memory: AgentMemory) throws(AgentError) {
        let code = memory.image.bytes.count
        let isAlone = effects.machine.vcpuCount == 1
        let filling = isAlone ? 0 : Self.halt
        try memory.writeCode([UInt8](repeating: filling, count: code), at: memory.base)
        try memory.writeData(
            [UInt8](repeating: 0, count: memory.image.size - code), at: memory.base + UInt64(code))
        if !isAlone { halted.append((memory, now() + Self.crashTime)) }
    }

    /// Zeroes what was left to halt in.
    private func zeroHalted(_ time: Deadline) throws(AgentError) {
        for (memory, due) in halted where due <= time {
            guard memory.isHalted(Self.halt) else { continue }
            try memory.writeData([UInt8](repeating: 0, count: memory.image.bytes.count), at: memory.base)
        }
        halted.removeAll { $0.due <= time }
    }

    /// The guest was reset: nothing is there any more.
    public func forgetEverything() throws(AgentError) {
        halted = []
        calls = []
        leaving = []
        leftovers = []
        for agent in agents {
            try note(agent, nil)
            agent.program.forget()
            agent.memory = nil
            agent.isDetached = true
            agent.state = .absent
        }
    }

    /// Runs `body` while the machine stands.
    private func whilePaused(_ body: () throws(AgentError) -> Void) throws(AgentError) {
        try hypervisor { () throws(HypervisorError) in try effects.attemptPaused(body) }.get()
    }

    private func hypervisor<Value>(
        _ body: () throws(HypervisorError) -> Value
    ) throws(AgentError) -> Value {
        do throws(HypervisorError) { return try body() } catch { throw .hypervisor(error) }
    }
}

/// What went wrong first with something that goes on all the same. An error of the hypervisor's ends it.
private struct FirstFailure {
    private var failure: AgentError?

    mutating func collect(_ body: () throws(AgentError) -> Void) throws(AgentError) {
        do throws(AgentError) {
            try body()
        } catch {
            if case .hypervisor = error { throw error }
            failure = failure ?? error
        }
    }

    func rethrow() throws(AgentError) { if let failure { throw failure } }
}

extension Duration {
    var milliseconds: Int64 {
        let (seconds, attoseconds) = components
        return seconds &* 1000 &+ attoseconds / 1_000_000_000_000_000
    }
}
