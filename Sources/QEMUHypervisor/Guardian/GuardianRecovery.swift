import HypervisorInterface
import X86

/// Takes what a dead Vigil left in force out of a guest, and leaves the run state to its operator.
struct GuardianRecovery {
    /// How long held callers may take to come out of the handler.
    static let drainTimeout = Duration.milliseconds(400)

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
        let found = try QEMUMachine.runState(qmp)
        let shallRun: Bool
        switch found {
        case .running, .stoppedByDebugger: shallRun = true
        case .paused: shallRun = state.stopIsOurs
        default: shallRun = false
        }
        if state.sites.isEmpty && state.handler == nil {
            // Whether the stub was started is not known, and does not matter: ending it leaves the machine
            // standing, if it stood.
            QEMUMachine.removeDebugConnection(qmp)
            switch try QEMUMachine.runState(qmp) {
            case .paused, .stoppedByDebugger: if shallRun || state.stopIsOurs { try qmp.execute("cont") }
            default: break
            }
            return "nothing was armed"
        }
        try stub.resynchronise()
        // All sites before the guest runs on. A return watch that outlives the return is fatal under TCG: an
        // interrupt whose frame is pushed over the watched slot is acknowledged, and then lost.
        for site in state.sites { try removeWholly(site) }
        let left = try emptyHandler(shallRun: shallRun)
        // Asked again: it may have gone to sleep, or off, meanwhile.
        switch try QEMUMachine.runState(qmp) {
        case .paused, .stoppedByDebugger: if shallRun { try stub.resume() }
        default: break
        }
        QEMUMachine.removeDebugConnection(qmp)
        var report = "\(state.sites.count) breakpoints removed, \(state.held.count) callers released"
        if let left { report += "; \(left)" }
        return report
    }

    /// Sites may be set twice where Vigil died between two steps: QEMU counts them.
    private func removeWholly(_ site: BreakpointSite) throws(HypervisorError) {
        try stub.remove(site)
        try stub.remove(site)
    }

    /// Lets every held caller out of the handler and zeroes it.
    /// - Returns: what could not be done, for people.
    private func emptyHandler(shallRun: Bool) throws(HypervisorError) -> String? {
        guard let handler = state.handler else { return nil }
        try stub.readDescription()
        let threads = try stub.threadCount()
        var inside = state.held

        /// Forgets callers that stand at the function's entry: not yet sent into the handler, or back from it.
        func noteArrivals() throws(HypervisorError) {
            let description = try stub.description()
            for thread in 1...threads {
                try stub.selectThread(thread)
                let registers = try RegisterCodec(description).decode(try stub.readRegisters())
                guard registers.rip == handler.entry.rawValue else { continue }
                for (slot, held) in inside where held.rsp == registers.rsp { inside[slot] = nil }
            }
        }

        try noteArrivals()
        if !inside.isEmpty {
            for slot in inside.keys {
                try stub.writePhysical([0], at: handler.physical.rawValue &+ UInt64(handler.waitOffset + slot))
            }
            guard shallRun else {
                return "the guest does not run, so \(inside.count) callers leave the handler when it does"
            }
            let entry = BreakpointSite.execution(handler.entry)
            try stub.insert(entry)
            let deadline = ContinuousClock.now + Self.drainTimeout
            while !inside.isEmpty && ContinuousClock.now < deadline {
                try letRun(past: entry, until: deadline)
                try noteArrivals()
            }
            try removeWholly(entry)
        }
        guard inside.isEmpty else { return "\(inside.count) callers are on their way out of the handler, which stays" }
        try stub.writePhysical([UInt8](repeating: 0, count: handler.length), at: handler.physical.rawValue)
        return nil
    }

    /// Lets the guest run from where it stands until it reaches a site again.
    private func letRun(past entry: BreakpointSite, until deadline: Deadline) throws(HypervisorError) {
        // A vCPU that stands at the entry would stop there again at once.
        let description = try stub.description()
        for thread in 1...(try stub.threadCount()) {
            try stub.selectThread(thread)
            let registers = try RegisterCodec(description).decode(try stub.readRegisters())
            if case .execution(let address) = entry, registers.rip == address.rawValue {
                try stub.remove(entry)
                // One that another vCPU's stop ended early is tried again at the next stop.
                _ = try stub.step(thread: thread)
                try stub.insert(entry)
            }
        }
        try stub.resume()
        while ContinuousClock.now < deadline {
            if try stub.takeStop() != nil { return }
            _ = Socket.waitForInput([stub.socket.descriptor], until: deadline)
        }
        if try stub.takeStop() == nil { _ = try stub.interrupt() }
    }
}
