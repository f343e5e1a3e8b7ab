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
    static let gateSteps = 32

    let state: GuardedState
    let qmp: QMPClient
    let stub: GDBStub

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
    func awaitOutcome() throws(HypervisorError) {
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
    func settleAccesses(mayStep: Bool) throws(HypervisorError) {
        let watched = state.watchedAddresses
        if watched.isEmpty { return }
        try stub.readDescription()
        let halted = MonitorText.haltedVCPUs(try qmp.monitor("info registers -a"))
        for thread in 1...(try stub.threadCount()) where !halted.contains(VCPU(thread - 1)) {
            let registers = try registers(ofThread: thread)
            // One that stands at a breakpoint has its stop before it, and would be taken past it.
            if state.sites.contains(.execution(GuestVirtualAddress(registers.rip))) { continue }
            guard mayStep || watched.contains(registers.rsp &- Self.returnDistance(registers)) else { continue }
            if try !stub.isAboutToWait(at: registers.rip) { _ = try stub.step(thread: thread) }
        }
    }

    /// How far above the watched slot the stack pointer stands of who has just returned from the power function: its
    /// return address is gone, and with 32 bits its three arguments (Microsoft, "__stdcall").
    private static func returnDistance(_ registers: Registers) -> UInt64 { registers.control.longModeActive ? 8 : 16 }

    /// Sites may be set twice where Vigil died between two steps: QEMU counts them.
    func removeWholly(_ site: BreakpointSite) throws(HypervisorError) {
        try stub.remove(site)
        try stub.remove(site)
    }

    /// Takes note of an operator who started or woke a machine that was not to run. A packet that arrived just
    /// then has stopped it again.
    func noteStart(_ shallRun: inout Bool) {
        guard !shallRun else { return }
        qmp.takeInput()
        if qmp.events.contains(where: { $0.name == "RESUME" || $0.name == "WAKEUP" }) { shallRun = true }
    }

    /// Puts the function's bytes back, and moves vCPUs out of the inline detour's handler.
    ///
    /// The handler's bytes stay. A thread that was interrupted in there has no vCPU, so it is not seen from here;
    /// it runs through them to the function. Nobody else gets there any more.
    /// - Returns: what was done, for people.
    func removePatch() throws(HypervisorError) -> String? {
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

    func registers(ofThread thread: Int) throws(HypervisorError) -> Registers {
        try stub.selectThread(thread)
        return try RegisterCodec(try stub.description()).decode(try stub.readRegisters())
    }

    func putBack(_ caller: HeldCaller, onThread thread: Int) throws(HypervisorError) {
        let current = try registers(ofThread: thread)
        try write(caller.registers, over: current)
        guard let vectors = caller.vectors else { return }
        for change in RegisterCodec(try stub.description()).writes(of: vectors) {
            try stub.writeRegister(number: change.number, change.bytes)
        }
    }

    /// Writes the selected thread's registers.
    func write(_ registers: Registers, over current: Registers) throws(HypervisorError) {
        for change in RegisterCodec(try stub.description()).changes(from: current, to: registers) {
            try stub.writeRegister(number: change.number, value: change.value, size: change.size)
        }
    }

    /// Lets the guest run from where it stands until it stops again.
    /// - Parameter deadline: nil for as long as that takes.
    /// - Returns: why it stands, or nil where it did not stop in time, or will not.
    func letRun(
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

    func waitForStop(until deadline: Deadline?) throws(HypervisorError) -> GDBStopReply? {
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
