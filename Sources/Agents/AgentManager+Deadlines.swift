import Detours
import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// What is due, and what becomes of a step that took too long.
extension AgentManager {
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

    func nextDeadline() -> Deadline? {
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
    func hear(_ agent: Agent) throws(AgentError) {
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

    func renewLease(_ time: Deadline) throws(AgentError) {
        guard nextLease <= time, effects.machine.writesDataWhileRunning else { return }
        nextLease = time + Self.leaseInterval
        leaseValue &+= 1
        for agent in agents where agent.state == .deployed {
            guard let memory = agent.memory, memory.isThere() else { continue }
            try memory.store(leaseValue, in: .lease)
        }
    }

    func passDeadline(of agent: Agent) throws(AgentError) {
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

    func passDeadline(of call: Call) throws(AgentError) {
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
    func neutralise(_ agent: Agent, _ reason: String) throws(AgentError) {
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
    func leaveBehind(_ agent: Agent, _ memory: AgentMemory) throws(AgentError) {
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
}
