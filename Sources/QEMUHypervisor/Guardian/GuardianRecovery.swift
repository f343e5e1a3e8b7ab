import GuestMemory
import HypervisorInterface
import X86

/// Takes what a dead Vigil left in force out of a guest, and leaves the run state to its operator.
struct GuardianRecovery {
    /// How long held callers may take to come out of the handler.
    static let drainTimeout = Duration.milliseconds(400)

    /// How long a call that is under way is given to come to its end.
    static let outcomePatience = Duration.milliseconds(300)

    /// More instructions a gate's code does not have.
    private static let gateSteps = 32

    private let state: GuardedState
    private let qmp: QMPClient
    private let stub: GDBStub

    init(state: GuardedState, qmp: Int32, debug: Int32) {
        self.state = state
        let pulse = Pulse()
        self.qmp = QMPClient(
            socket: Socket(descriptor: qmp, peer: "QEMU's QMP socket"), pulse: pulse, idPrefix: "guardian")
        stub = GDBStub(socket: Socket(descriptor: debug, peer: "QEMU's gdbstub"), pulse: pulse)
    }

    /// - Returns: what was done, for people.
    func run() throws(HypervisorError) -> String {
        // What was said before an answer came is over. The state is asked for after that: a start that comes between
        // the state's answer and the stub's stays among the events.
        _ = try QEMUMachine.runState(qmp)
        try awaitOutcome()
        while qmp.takeEvent() != nil {}
        let found = try QEMUMachine.runState(qmp)
        var shallRun: Bool
        switch found {
        case .running, .stoppedByDebugger: shallRun = true
        case .paused: shallRun = state.stopIsOurs
        default: shallRun = false
        }
        if state.sites.isEmpty && state.handler == nil && state.patch == nil && state.held.isEmpty
            && state.replaced.isEmpty && state.agents.isEmpty
        {
            // Whether the stub was started is not known, and does not matter: ending it leaves the machine
            // standing, if it stood.
            QEMUMachine.removeDebugConnection(qmp)
            switch try QEMUMachine.runState(qmp) {
            case .paused, .stoppedByDebugger: if shallRun || state.stopIsOurs { try qmp.execute("cont") }
            default: break
            }
            return "nothing was armed"
        }
        try stub.resynchronise(as: .heir)
        noteStart(&shallRun)
        try settleAccesses(mayStep: shallRun)
        // All sites before the guest runs on. A return watch that outlives the return is fatal under TCG: an
        // interrupt whose frame is pushed over the watched slot is acknowledged, and then lost.
        for site in state.sites { try removeWholly(site) }
        // Before it runs on, too: from here on callers come back to the function itself.
        let unpatched = try removePatch()
        let restored = try restoreCode()
        let agents = try letAgentsLeave()
        let left = try emptyHandler(shallRun: shallRun)
        let freed = try endDelays(shallRun: &shallRun, owing: agents.left)
        noteStart(&shallRun)
        // Asked again: it may have gone to sleep, or off, meanwhile.
        switch try QEMUMachine.runState(qmp) {
        case .paused, .stoppedByDebugger: if shallRun { try stub.resume() }
        default: break
        }
        QEMUMachine.removeDebugConnection(qmp)
        var report = "\(state.sites.count) breakpoints removed, \(state.held.count) callers released"
        for more in [unpatched, restored, agents.report, left, freed].compactMap(\.self) { report += "; \(more)" }
        return report
    }

    /// A caller was let in, and the machine may be about to sleep: QEMU 7.2 ends in an abort where it is stopped between
    /// the guest's wish to sleep and the sleep. So nothing stops it for a while, unless the call returns, which its watch
    /// tells, or the machine says that it sleeps.
    private func awaitOutcome() throws(HypervisorError) {
        guard state.held.isEmpty, !state.watchedAddresses.isEmpty else { return }
        let deadline = ContinuousClock.now + Self.outcomePatience
        let descriptors = [stub.socket.descriptor, qmp.socket.descriptor]
        while ContinuousClock.now < deadline, try QEMUMachine.runState(qmp) == .running, try stub.takeStop() == nil {
            _ = Socket.waitForInput(descriptors, until: deadline)
        }
    }

    /// Lets QEMU forget an access whose stop coincided with a pause, and was swallowed by it: remembered, it would end
    /// QEMU in an assertion when the next session watches anything. A stop of that vCPU's own makes QEMU forget, as
    /// long as the watch is there.
    /// - Parameter mayStep: false for a machine that is not to run: only who has returned is stepped there.
    private func settleAccesses(mayStep: Bool) throws(HypervisorError) {
        let watched = state.watchedAddresses
        if watched.isEmpty { return }
        try stub.readDescription()
        let halted = MonitorText.haltedVCPUs(try qmp.monitor("info registers -a"))
        for thread in 1...(try stub.threadCount()) where !halted.contains(VCPU(thread - 1)) {
            let registers = try registers(ofThread: thread)
            // One that stands at a breakpoint has its stop before it, and would be taken past it.
            if state.sites.contains(.execution(GuestVirtualAddress(registers.rip))) { continue }
            // Who has just returned stands right above the watched slot.
            if mayStep || watched.contains(registers.rsp &- 8) { _ = try stub.step(thread: thread) }
        }
    }

    /// Sites may be set twice where Vigil died between two steps: QEMU counts them.
    private func removeWholly(_ site: BreakpointSite) throws(HypervisorError) {
        try stub.remove(site)
        try stub.remove(site)
    }

    /// Takes note of an operator who started or woke a machine that was not to run. A packet that arrived just
    /// then has stopped it again.
    private func noteStart(_ shallRun: inout Bool) {
        guard !shallRun else { return }
        qmp.takeInput()
        if qmp.events.contains(where: { $0.name == "RESUME" || $0.name == "WAKEUP" }) { shallRun = true }
    }

    /// Puts the function's bytes back, and moves vCPUs out of the inline detour's handler.
    ///
    /// The handler's bytes stay. A thread that was interrupted in there has no vCPU, so it is not seen from here;
    /// it runs through them to the function. Nobody else gets there any more.
    /// - Returns: what was done, for people.
    private func removePatch() throws(HypervisorError) -> String? {
        guard let patch = state.patch else { return nil }
        try stub.readDescription()
        var isForeign = false
        for place in patch.places {
            let found = try stub.readPhysical(place.original.count, at: place.physical.rawValue)
            if found == place.patch {
                try stub.writePhysical(place.original, at: place.physical.rawValue)
            } else if found != place.original {
                isForeign = true
            }
        }
        // Whoever changed the jump may still lead callers to the handler.
        if isForeign { return "the function's first bytes are somebody else's by now, and were left alone" }
        for thread in 1...(try stub.threadCount()) {
            let current = try registers(ofThread: thread)
            guard let target = patch.counterpart(of: current.rip) else { continue }
            var moved = current
            moved.rip = target.rawValue
            try write(moved, over: current)
        }
        let rest = try stub.readPhysical(patch.handlerLength, at: patch.handlerPhysical.rawValue)
        if rest.allSatisfy({ $0 == 0 }) { return "the function's bytes are its own" }
        return "the function's bytes are its own again; the jump's handler, \(patch.handlerLength) bytes at "
            + "\(patch.handler), stays for threads that were interrupted in it, and nothing leads there any more"
    }

    /// Puts back what agents had replaced of the kernel's code, where it still is what they put there.
    /// - Returns: what was done, for people.
    private func restoreCode() throws(HypervisorError) -> String? {
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
    private func isCodeForeign() throws(HypervisorError) -> Bool {
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
    private func leave(_ isInside: (UInt64) -> Bool) throws(HypervisorError) -> Bool {
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
    private func letAgentsLeave() throws(HypervisorError) -> (report: String?, left: [AgentTrace]) {
        if state.agents.isEmpty { return (nil, []) }
        try stub.readDescription()
        let isForeign = try isCodeForeign()
        var told = 0
        var left: [AgentTrace] = []
        for trace in state.agents.values where !isForeign || trace.gate.isEmpty {
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

    private func read(_ offset: Int, of trace: AgentTrace) throws(HypervisorError) -> UInt32 {
        let bytes = try stub.readPhysical(4, at: trace.header.rawValue &+ UInt64(offset))
        return bytes.reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }

    private func write(_ value: UInt32, to offset: Int, of trace: AgentTrace) throws(HypervisorError) {
        try stub.writePhysical(
            withUnsafeBytes(of: value.littleEndian, Array.init), at: trace.header.rawValue &+ UInt64(offset))
    }

    /// Lets every held caller out of the handler and zeroes it.
    /// - Returns: what could not be done, for people.
    private func emptyHandler(shallRun: Bool) throws(HypervisorError) -> String? {
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
    private struct Away {
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
    private func endDelays(
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

    private func endDelays(
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
    private func letGo(
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

    /// The memory of an agent whose thread is gone for certain.
    private func takeLeft(_ away: inout Away) throws(HypervisorError) -> PoolBlock? {
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

    /// Where callers come back: the function's entry. One that was interrupted on its way along the jump that had
    /// been there comes to the start of the jump's handler.
    private func gates(to entry: GuestVirtualAddress) -> [BreakpointSite] {
        [entry, state.patch?.handler].compactMap { $0.map { .execution($0) } }
    }

    /// Forgets callers that stand at the function's entry: not yet sent off, or back. One that comes from a
    /// delay gets its registers, or gives back first what it owes.
    private func noteArrivals(at entry: GuestVirtualAddress, _ away: inout Away) throws(HypervisorError) {
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

    private func registers(ofThread thread: Int) throws(HypervisorError) -> Registers {
        try stub.selectThread(thread)
        return try RegisterCodec(try stub.description()).decode(try stub.readRegisters())
    }

    private func putBack(_ caller: HeldCaller, onThread thread: Int) throws(HypervisorError) {
        let current = try registers(ofThread: thread)
        try write(caller.registers, over: current)
        guard let vectors = caller.vectors else { return }
        for change in RegisterCodec(try stub.description()).writes(of: vectors) {
            try stub.writeRegister(number: change.number, change.bytes)
        }
    }

    /// Writes the selected thread's registers.
    private func write(_ registers: Registers, over current: Registers) throws(HypervisorError) {
        for change in RegisterCodec(try stub.description()).changes(from: current, to: registers) {
            try stub.writeRegister(number: change.number, value: change.value, size: change.size)
        }
    }

    /// Lets the guest run from where it stands until it stops again.
    /// - Parameter deadline: nil for as long as that takes.
    /// - Returns: why it stands, or nil where it did not stop in time, or will not.
    private func letRun(
        past gates: [BreakpointSite], until deadline: Deadline?
    ) throws(HypervisorError) -> GDBStopReply? {
        // A vCPU that stands at one would stop there again at once.
        for thread in 1...(try stub.threadCount()) {
            let rip = GuestVirtualAddress(try registers(ofThread: thread).rip)
            if let gate = gates.first(where: { $0 == .execution(rip) }) {
                try stub.remove(gate)
                // One that another vCPU's stop ended early is tried again at the next stop.
                _ = try stub.step(thread: thread)
                try stub.insert(gate)
            }
        }
        try stub.resume()
        return try waitForStop(until: deadline)
    }

    private func waitForStop(until deadline: Deadline?) throws(HypervisorError) -> GDBStopReply? {
        let descriptors = [stub.socket.descriptor, qmp.socket.descriptor]
        while deadline.map({ ContinuousClock.now < $0 }) ?? true {
            if let stop = try stub.takeStop() { return stop }
            qmp.takeInput()
            while let event = qmp.takeEvent() {
                if event.name == "RESET" || event.name == "SHUTDOWN" { return nil }
                // Started by its operator: what stops it next is news.
                if event.name == "RESUME" { stub.noteStartedByOthers() }
            }
            try qmp.checkOpen()
            _ = Socket.waitForInput(descriptors, until: deadline ?? .now + .seconds(60))
        }
        return try stub.takeStop()
    }
}
