import Detours
import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// Leaving the guest, its crash, and its reset.
extension AgentManager {
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
    func zero(_ memory: AgentMemory) throws(AgentError) {
        let code = memory.image.bytes.count
        let isAlone = effects.machine.vcpuCount == 1
        let filling = isAlone ? 0 : Self.halt
        try memory.writeCode([UInt8](repeating: filling, count: code), at: memory.base)
        try memory.writeData(
            [UInt8](repeating: 0, count: memory.image.size - code), at: memory.base + UInt64(code))
        if !isAlone { halted.append((memory, now() + Self.crashTime)) }
    }

    /// Zeroes what was left to halt in.
    func zeroHalted(_ time: Deadline) throws(AgentError) {
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
}
