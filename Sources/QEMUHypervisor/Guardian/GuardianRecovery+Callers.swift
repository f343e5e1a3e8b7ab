import GuestMemory
import HypervisorInterface
import X86

/// Threads that Vigil kept waiting, or had borrowed: each goes on with the registers it had.
extension GuardianRecovery {
    /// Lets every held caller out of the handler and zeroes it.
    /// - Returns: what could not be done, for people.
    func emptyHandler(shallRun: Bool) throws(HypervisorError) -> String? {
        guard let handler = state.handler else { return nil }
        try stub.readDescription()
        var inside = Away(callers: state.held.filter { $0.value.delay == nil }, left: [])
        try noteArrivals(at: handler.entry, &inside)
        if !inside.callers.isEmpty {
            for slot in inside.callers.keys {
                try stub.writePhysical([0], at: handler.physical.rawValue &+ UInt64(handler.waitOffset + slot))
            }
            guard shallRun else {
                return "the guest does not run, so \(inside.callers.count) callers leave the handler when it does"
            }
            let gates = self.gates(to: handler.entry)
            for gate in gates { try stub.insert(gate) }
            let deadline = ContinuousClock.now + Self.drainTimeout
            while !inside.callers.isEmpty && ContinuousClock.now < deadline {
                if try letRun(past: gates, until: deadline) == nil { _ = try stub.interrupt() }
                try noteArrivals(at: handler.entry, &inside)
            }
            for gate in gates { try removeWholly(gate) }
        }
        guard inside.callers.isEmpty else {
            return "\(inside.callers.count) callers are on their way out of the handler, which stays"
        }
        try stub.writePhysical([UInt8](repeating: 0, count: handler.length), at: handler.physical.rawValue)
        return nil
    }

    /// Callers that are away, and what they have to give back before they get their registers.
    struct Away {
        var callers: [Int: HeldCaller]
        /// Agents whose threads are gone, and whose memory is nobody's.
        var left: [AgentTrace]
        var freed = 0
    }

    /// Gives every caller that waits in a delay its own registers back.
    ///
    /// Nobody else knows them, so this waits for each, also for a guest that its operator has stopped. What is nobody's
    /// in the guest's pool is given back by such a caller first.
    /// - Parameter left: agents whose threads are gone, and whose memory is nobody's.
    /// - Returns: what was given back, or had to stay, for people.
    func endDelays(
        shallRun: inout Bool, owing left: [AgentTrace]
    ) throws(HypervisorError) -> String? {
        var away = Away(callers: state.held.filter { $0.value.delay != nil }, left: left)
        if let address = away.callers.values.first?.delay?.entry {
            try endDelays(at: address, &away, shallRun: &shallRun)
        }
        var report: [String] = []
        if away.freed > 0 { report.append("\(away.freed) blocks of the guest's pool given back") }
        for trace in away.left { report.append("\(trace.block.size) bytes at \(trace.block.address) stay") }
        return report.isEmpty ? nil : report.joined(separator: "; ")
    }

    func endDelays(
        at address: GuestVirtualAddress, _ away: inout Away, shallRun: inout Bool
    ) throws(HypervisorError) {
        try stub.readDescription()
        for (slot, caller) in away.callers where !state.sentOff.contains(slot) {
            // Vigil was working on it: its vCPU stands where it stood.
            guard let delay = caller.delay else { continue }
            try letGo(caller, onThread: delay.vcpu.index + 1, owing: delay.owed?.beforeCall, &away)
        }
        try noteArrivals(at: address, &away)
        if away.callers.isEmpty { return }
        let gates = self.gates(to: address)
        for gate in gates { try stub.insert(gate) }
        while !away.callers.isEmpty {
            let stop: GDBStopReply?
            let stood = !shallRun
            noteStart(&shallRun)
            if stood && shallRun {
                // It may have reached the entry at once.
                try noteArrivals(at: address, &away)
                if away.callers.isEmpty { break }
            }
            if shallRun {
                stop = try letRun(past: gates, until: nil)
            } else {
                stop = try waitForStop(until: nil)
                shallRun = true
            }
            switch stop {
            case .trap: try noteArrivals(at: address, &away)
            // Its operator stopped it: it is not for us to start it again.
            case .interrupted: shallRun = false
            // It was reset, or is off: nobody waits in it any more, and nothing is in its pool.
            case .poweredOff, .exited, nil:
                away.callers = [:]
                away.left = []
                if try QEMUMachine.runState(qmp).isRunning { _ = try stub.interrupt() }
            }
        }
        for gate in gates { try removeWholly(gate) }
    }

    /// Gives a caller its own registers back, unless it has something to give back first.
    func letGo(
        _ caller: HeldCaller, onThread thread: Int, owing owed: PoolBlock?, _ away: inout Away
    ) throws(HypervisorError) {
        let found = if let owed { owed } else { try takeLeft(&away) }
        guard var delay = caller.delay, let block = found else {
            try putBack(caller, onThread: thread)
            away.callers[caller.slot] = nil
            return
        }
        // Below what the caller has on its stack itself there is room for the function's home space (Microsoft's x64
        // calling convention), and the return address.
        var calling = caller.registers
        calling.rip = block.free.rawValue
        calling.rsp = delay.arrivalRSP &- 8
        calling.rcx = block.address.rawValue
        calling.rdx = UInt64(block.tag)
        try write(calling, over: try registers(ofThread: thread))
        try stub.writeVirtual(
            withUnsafeBytes(of: delay.entry.rawValue.littleEndian, Array.init), at: calling.rsp)
        delay.owed = nil
        away.callers[caller.slot]?.delay = delay
        away.freed += 1
    }

    /// Where callers come back: the function's entry. One that was interrupted on its way along the jump that had
    /// been there comes to the start of the jump's handler.
    func gates(to entry: GuestVirtualAddress) -> [BreakpointSite] {
        [entry, state.patch?.handler].compactMap { $0.map { .execution($0) } }
    }

    /// Forgets callers that stand at the function's entry: not yet sent off, or back. One that comes from a
    /// delay gets its registers, or gives back first what it owes.
    func noteArrivals(at entry: GuestVirtualAddress, _ away: inout Away) throws(HypervisorError) {
        for thread in 1...(try stub.threadCount()) {
            let registers = try registers(ofThread: thread)
            guard registers.rip == entry.rawValue || registers.rip == state.patch?.handler.rawValue else { continue }
            for (slot, caller) in away.callers {
                if caller.registers.rsp == registers.rsp {
                    away.callers[slot] = nil
                } else if let delay = caller.delay, delay.arrivalRSP == registers.rsp {
                    try letGo(caller, onThread: thread, owing: delay.owed?.afterCall(registers.rax), &away)
                }
            }
        }
    }
}
