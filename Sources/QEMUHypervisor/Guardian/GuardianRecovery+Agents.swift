import GuestMemory
import HypervisorInterface
import X86

/// What agents had put into the guest: the kernel's code as it was, and the agents on their way out.
extension GuardianRecovery {
    /// Puts back what agents had replaced of the kernel's code, where it still is what they put there.
    /// - Returns: what was done, for people.
    func restoreCode() throws(HypervisorError) -> String? {
        if state.replaced.isEmpty { return nil }
        try stub.readDescription()
        var restored = 0
        for place in state.replaced.values.sorted(by: { $0.physical.rawValue < $1.physical.rawValue }) {
            let found = try stub.readPhysical(place.patch.count, at: place.physical.rawValue)
            guard found == place.patch, try leave({ place.isEntered($0) }) else { continue }
            try stub.writePhysical(place.original, at: place.physical.rawValue)
            restored += 1
        }
        return "\(restored) places of the kernel's code are as they were"
    }

    /// Whether somebody has changed code that led to an agent, and may lead there still.
    func isCodeForeign() throws(HypervisorError) -> Bool {
        for place in state.replaced.values {
            let found = try stub.readPhysical(place.original.count, at: place.physical.rawValue)
            if found != place.original { return true }
        }
        return false
    }

    /// Steps every processor out of some code that takes but a few instructions: what leads to a gate (who has come by
    /// the interrupt would be in the old handler otherwise, which knows nothing of it), or a gate's code, after which it
    /// is counted, or out.
    /// - Returns: false where one did not come out.
    func leave(_ isInside: (UInt64) -> Bool) throws(HypervisorError) -> Bool {
        for thread in 1...(try stub.threadCount()) {
            var steps = 0
            while isInside(try registers(ofThread: thread).rip) {
                if steps == Self.gateSteps { return false }
                _ = try stub.step(thread: thread)
                steps += 1
            }
        }
        return true
    }

    /// Tells every agent to leave by itself that nothing leads to any more.
    /// - Returns: what was done, for people; and those that go, or have gone, without giving their memory back, since
    ///   Vigil was there to do that.
    func letAgentsLeave() throws(HypervisorError) -> (report: String?, left: [AgentTrace]) {
        if state.agents.isEmpty { return (nil, []) }
        try stub.readDescription()
        let isForeign = try isCodeForeign()
        // A thread is on its way to give these back.
        let owed = state.held.values.compactMap { caller -> GuestVirtualAddress? in
            if case .unlessCalled(let block)? = caller.delay?.owed { block.address } else { nil }
        }
        var told = 0
        var left: [AgentTrace] = []
        for trace in state.agents.values where !owed.contains(trace.block.address) {
            if isForeign, !trace.gate.isEmpty { continue }
            let found = try stub.readPhysical(8, at: trace.header.rawValue)
            guard found == withUnsafeBytes(of: trace.magic.littleEndian, Array.init) else { continue }
            if !trace.gate.isEmpty, try !leave(trace.gate.contains) { continue }
            try write(1, to: trace.mayLeaveOffset, of: trace)
            if try read(trace.stopWantedOffset, of: trace) == trace.leaving {
                left.append(trace)
            } else {
                try write(trace.leaveByItself, to: trace.stopWantedOffset, of: trace)
                told += 1
            }
        }
        return (told == 0 && !left.isEmpty ? nil : "\(told) agents leave by themselves", left)
    }

    func read(_ offset: Int, of trace: AgentTrace) throws(HypervisorError) -> UInt32 {
        let bytes = try stub.readPhysical(4, at: trace.header.rawValue &+ UInt64(offset))
        return bytes.reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }

    func write(_ value: UInt32, to offset: Int, of trace: AgentTrace) throws(HypervisorError) {
        try stub.writePhysical(
            withUnsafeBytes(of: value.littleEndian, Array.init), at: trace.header.rawValue &+ UInt64(offset))
    }

    /// The memory of an agent whose thread is gone for certain.
    func takeLeft(_ away: inout Away) throws(HypervisorError) -> PoolBlock? {
        for (index, trace) in away.left.enumerated() where try read(trace.stageOffset, of: trace) == trace.left {
            var isInside = false
            for thread in 1...(try stub.threadCount()) {
                isInside = try trace.block.contains(registers(ofThread: thread).rip) || isInside
            }
            if isInside { continue }
            // Nobody shall take what lies there for an agent any more.
            try stub.writePhysical([UInt8](repeating: 0, count: 8), at: trace.header.rawValue)
            return away.left.remove(at: index).block
        }
        return nil
    }
}
