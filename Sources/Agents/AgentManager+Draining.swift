import Detours
import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// Looking whether agents that were told to leave have left.
extension AgentManager {
    /// Looks whether agents that were told to leave have left. The machine stands, so that what the vCPUs say is
    /// true of one instant.
    func lookAtDraining() throws(AgentError) {
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

    func look(at agent: Agent, _ places: [UInt64]) throws(AgentError) {
        guard let memory = agent.memory, try tryToDetach(agent) == nil else { return }
        if !memory.isThere() { return try noteGone(agent) }
        if try memory.load(.mayLeave) as UInt32 == 0, !places.contains(where: memory.isInGate) {
            // Who came by the gate is counted now; the agent's thread waits for them.
            try memory.store(1, in: .mayLeave)
        }
        if agent.isSignalled, try hasLeft(memory, places) { agent.state = .unloading }
    }

    func hasLeft(_ memory: AgentMemory, _ places: [UInt64]) throws(AgentError) -> Bool {
        guard try memory.stage() == .left, try memory.inside() == 0 else { return false }
        return !places.contains(where: memory.contains)
    }

    /// An agent's thread has given its memory back, unasked: it had no sign of life for too long. What lies there now is
    /// somebody else's.
    func noteGone(_ agent: Agent) throws(AgentError) {
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
    func processorsPlaces() throws(AgentError) -> [UInt64] {
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
}
