import Detours
import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// The guest's functions that borrowed threads call: which is next, and what came of it.
extension AgentManager {
    /// The next call that has to be made, if one can be made now, and the memory that it is about.
    func pendingCall() -> (agent: Agent, purpose: Call.Purpose, memory: AgentMemory?)? {
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
            if purpose == .discard, memory.isThere() { try memory.forgetMagic() }
            guestCall = GuestCall(
                functions.free, [.value(memory.base.rawValue), .value(UInt64(Self.poolTag))],
                owed: .unlessCalled(block(memory)))
        case (_, nil): return nil
        }
        calls.append(
            Call(agent: agent, purpose: purpose, memory: about, place: place, deadline: now() + deadlines.call))
        return guestCall
    }

    func block(_ memory: AgentMemory) -> PoolBlock { block(memory.base, memory.image.size) }

    func block(_ address: GuestVirtualAddress, _ size: Int) -> PoolBlock {
        PoolBlock(address: address, size: size, tag: Self.poolTag, free: functions.free)
    }

    /// The thread was sent off to make the call.
    /// - Parameter slot: what it is recognised by when it comes back.
    public func didSend(slot: Int) {
        guard let index = calls.firstIndex(where: { $0.slot == nil }) else { return }
        calls[index].slot = slot
        guard calls[index].purpose == .free, let memory = calls[index].memory else { return }
        // From here on the thread owes the block, which the guardian knows, and nobody may take what lies there for an
        // agent. Not before: in between it would be nobody's. A machine that does not take this is gone.
        if memory.isThere() { try? memory.forgetMagic() }
        try? note(calls[index].agent, nil)
    }

    /// Tells the guardian of an agent that it would have to get out.
    func note(_ agent: Agent, _ trace: AgentTrace?) throws(AgentError) {
        try hypervisor { () throws(HypervisorError) in try effects.noteAgent(agent.number, trace) }
    }

    /// A withdrawal that no system call came for is made from where its caller waits.
    func fallback(_ agent: Agent) -> Deadline { agent.stepDeadline - deadlines.withdrawal / 2 }

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
    func clean(up done: Call, _ registers: Registers) {
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
    func forget(leftover done: Call) {
        leftovers.removeAll { $0.memory.base == done.memory?.base }
        let agent = done.agent
        guard agent.state == .neutralised, agent.memory?.base == done.memory?.base else { return }
        agent.memory = nil
        agent.state = .absent
    }

    func finishAllocation(_ agent: Agent, _ base: GuestVirtualAddress) throws(AgentError) {
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

    func load(_ agent: Agent, _ memory: AgentMemory) throws(AgentError) {
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

    func finishStart(_ agent: Agent, status: UInt32, _ done: Call) throws(AgentError) {
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

    func finishFreeing(_ agent: Agent, _ done: Call) {
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

    func fail(_ agent: Agent, _ error: AgentError) {
        agent.state = .failed(error.description)
        agent.memory = nil
        report(.failed(agent: agent.program.name, reason: error.description))
    }
}
