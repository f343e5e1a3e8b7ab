import Glibc
import GuestMemory
import HypervisorInterface
import X86

extension QEMUMachine: ControllableMachine {
    /// A debug register each under KVM; TCG has no limit, but the same rules hold there.
    public var breakpointCapacity: Int { 4 }

    private func control() throws(HypervisorError) -> GDBStub {
        guard let stub else { throw .unsupported("the guest is observed, not controlled: control was not taken") }
        return stub
    }

    public var isStanding: Bool {
        get throws(HypervisorError) {
            if let stub, stub.isStanding, !isStoppedByOperator { return true }
            let state = try runState()
            // At a breakpoint whose stop has not been taken yet: to a pause that stop is the answer.
            if stub != nil && state == .stoppedByDebugger { return false }
            return !state.isRunning
        }
    }

    /// The label of the debug connection that this QEMU already has, if it has one.
    public func debuggerInPlace() throws(HypervisorError) -> String? {
        let list = try qmp.execute("query-chardev").array ?? []
        let labels = list.compactMap { $0["label"]?.string }
        return labels.first { $0 == "gdb" || $0 == DebugConnection.chardev }
    }

    public func prepareControl() throws(HypervisorError) -> any EffectWitness {
        if let label = try debuggerInPlace() { throw .debuggerBusy(label: label) }
        guard let guardianCommand else {
            throw .unsupported("no guardian: without the process that outlives Vigil, nothing is armed")
        }
        // The guardian comes first: from the first thing that is made in QEMU on, somebody will undo it.
        let ends = try DebugConnection.makeEnds(local: isLocal)
        let socket = Socket(descriptor: ends.ours, peer: "QEMU's gdbstub")
        defer { if let theirs = ends.theirs { close(theirs) } }
        let link = try GuardianLink(command: guardianCommand, qmp: qmp.socket.descriptor, debug: ends.ours)
        guardian = link
        pulse.beat = { () throws(HypervisorError) in try link.beat() }
        let stub = GDBStub(socket: socket, pulse: pulse)
        stub.onUnaskedStop = { () throws(HypervisorError) in try link.willPerform(.pause) }
        self.stub = stub
        do throws(HypervisorError) {
            try link.check()
            if let theirs = ends.theirs {
                try passDescriptor(theirs)
            } else {
                try connectOverLoopback(ends.ours)
            }
        } catch {
            let reason = lossOfControl
            try? closeControl()
            throw reason ?? error
        }
        return link
    }

    /// Hands QEMU its end of a socket pair.
    private func passDescriptor(_ theirs: Int32) throws(HypervisorError) {
        try qmp.execute("getfd", ["fdname": .string(DebugConnection.passedDescriptor)], passing: theirs)
        try qmp.execute(
            "chardev-add",
            [
                "id": .string(DebugConnection.chardev),
                "backend": [
                    "type": "socket",
                    "data": [
                        "addr": ["type": "fd", "data": ["str": .string(DebugConnection.passedDescriptor)]],
                        "server": false,
                    ],
                ],
            ])
    }

    /// Over TCP no descriptor can be passed: a port on QEMU's loopback, chosen by its kernel.
    private func connectOverLoopback(_ ours: Int32) throws(HypervisorError) {
        try qmp.execute(
            "chardev-add",
            [
                "id": .string(DebugConnection.chardev),
                "backend": [
                    "type": "socket",
                    "data": [
                        "addr": ["type": "inet", "data": ["host": "127.0.0.1", "port": "0"]],
                        "server": true, "wait": false, "nodelay": true,
                    ],
                ],
            ])
        let list = try qmp.execute("query-chardev").array ?? []
        let entry = list.first { $0["label"]?.string == DebugConnection.chardev }
        // "disconnected:tcp:127.0.0.1:40123,server=on"
        guard let name = entry?["filename"]?.string, let colon = name.lastIndex(of: ":"),
            let port = UInt16(name[name.index(after: colon)...].prefix { $0.isNumber })
        else { throw .unexpectedAnswer("no port for the debug connection") }
        try DebugConnection.connect(ours, port: port)
    }

    public func abandonWitness() {
        guardian?.handOver()
        forgetGuardian()
    }

    private func forgetGuardian() {
        guardian = nil
        pulse.beat = { () throws(HypervisorError) in }
    }

    public var lossOfControl: HypervisorError? {
        do throws(HypervisorError) {
            try guardian?.check()
            return nil
        } catch {
            return error
        }
    }

    public func openControl() throws(HypervisorError) -> Bool {
        let stub = try control()
        var wasRunning = try runState().isRunning
        let known = qmp.events.count
        try qmp.monitor("gdbserver chardev:\(DebugConnection.chardev)")
        if !wasRunning, qmp.events.dropFirst(known).contains(where: { $0.name == "STOP" }) {
            // It woke, or its operator started it, just before.
            wasRunning = true
            try guardian?.willPerform(.pause)
        }
        try stub.open(wasRunning: wasRunning)
        vcpuCount = try stub.threadCount()
        return wasRunning
    }

    public func closeControl() throws(HypervisorError) {
        guard stub != nil else { return }
        removeDebugConnection()
        stub = nil
        guardian?.dismiss()
        forgetGuardian()
    }

    /// Ends the gdbstub without a detach packet, which would start a suspended or paused guest.
    private func removeDebugConnection() { QEMUMachine.removeDebugConnection(qmp) }

    static func removeDebugConnection(_ qmp: QMPClient) {
        _ = try? qmp.monitor("gdbserver none")
        _ = try? qmp.execute("chardev-remove", ["id": .string(DebugConnection.chardev)])
        _ = try? qmp.execute("closefd", ["fdname": .string(DebugConnection.passedDescriptor)])
    }

    public func pause() throws(HypervisorError) -> Bool {
        let isOurs = try control().interrupt()
        // Nobody's access was reported with it, so QEMU has forgotten none.
        if isOurs { lastStopped = nil }
        return isOurs
    }

    public var hasPendingStop: Bool { stub?.hasPendingStop ?? false }

    public var hasStoppedUnasked: Bool { stub?.hasStoppedUnasked ?? false }

    public func resume() throws(HypervisorError) {
        // A guest that went to sleep while it stood must not be started: nothing would wake it.
        qmp.takeInput()
        if !hasStoppedUnasked,
            qmp.events.last(where: { $0.name == "SUSPEND" || $0.name == "WAKEUP" })?.name == "SUSPEND"
        {
            return
        }
        haltedVCPUs = nil
        try control().resume()
        // Parsed while the machine runs, so that the first stop need not wait for it.
        _ = try control().description()
    }

    private func select(_ vcpu: VCPU) throws(HypervisorError) {
        let thread = vcpu.index + 1
        if selectedThread != thread {
            try control().selectThread(thread)
            selectedThread = thread
        }
    }

    public func registers(of vcpu: VCPU) throws(HypervisorError) -> Registers {
        try select(vcpu)
        let stub = try control()
        return try RegisterCodec(try stub.description()).decode(try stub.readRegisters())
    }

    public func setRegisters(
        of vcpu: VCPU, from old: Registers, to new: Registers
    ) throws(HypervisorError) {
        try select(vcpu)
        let stub = try control()
        for change in RegisterCodec(try stub.description()).changes(from: old, to: new) {
            try stub.writeRegister(number: change.number, value: change.value, size: change.size)
        }
    }

    public func vectorRegisters(of vcpu: VCPU) throws(HypervisorError) -> VectorRegisters? {
        try select(vcpu)
        let stub = try control()
        return try RegisterCodec(try stub.description()).decodeVectors(try stub.readRegisters())
    }

    public func setVectorRegisters(of vcpu: VCPU, to vectors: VectorRegisters) throws(HypervisorError) {
        try select(vcpu)
        let stub = try control()
        for write in RegisterCodec(try stub.description()).writes(of: vectors) {
            try stub.writeRegister(number: write.number, write.bytes)
        }
    }

    /// How often a step is tried that another vCPU's stop can end before its time.
    private static let stepAttempts = 8

    public func step(_ vcpu: VCPU) throws(HypervisorError) {
        let thread = vcpu.index + 1
        let before = vcpuCount > 1 ? try registers(of: vcpu).rip : nil
        for _ in 0..<Self.stepAttempts {
            selectedThread = nil
            let stopped = try control().step(thread: thread)
            lastStopped = VCPU(stopped - 1)
            guard let before else { return }
            // Of two vCPUs that stopped at once, QEMU reports one and remembers that it was asked to stop once
            // more, which ends the next run before it began. An instruction may also leave RIP as it was (a
            // repeated one does): to do that again harms nobody.
            if stopped == thread, try registers(of: vcpu).rip != before { return }
        }
    }

    /// Of several vCPUs that met a watch at once, QEMU reports one and forgets that access; of one that met a watch when
    /// it was told to pause, it reports the pause. Another access stays in mind (`CPUState.watchpoint_hit`), and from
    /// then on that vCPU's every access to a page with a watch on it stops it; an interrupt delivered there ends QEMU
    /// in an assertion, or is lost. A stop of that vCPU's own makes QEMU forget.
    ///
    /// A halted vCPU has executed `hlt` since its last access, so nothing of it is in mind: it would have stopped
    /// before. It cannot be stepped: its instruction ends when an interrupt comes. The same is true of one that is
    /// about to halt; what may be in mind of that one stays.
    public func settleAccess(of vcpu: VCPU) throws(HypervisorError) -> Bool {
        if lastStopped == vcpu { return false }
        if try halted().contains(vcpu) { return false }
        if try control().isAboutToWait(at: registers(of: vcpu).rip) { return false }
        try step(vcpu)
        return true
    }

    private func halted() throws(HypervisorError) -> Set<VCPU> {
        if let haltedVCPUs { return haltedVCPUs }
        let halted = MonitorText.haltedVCPUs(try qmp.monitor("info registers -a"))
        haltedVCPUs = halted
        return halted
    }

    public func insert(_ site: BreakpointSite) throws(HypervisorError) { try control().insert(site) }

    public func remove(_ site: BreakpointSite) throws(HypervisorError) { try control().remove(site) }

    public func writeCode(_ bytes: [UInt8], at address: GuestPhysicalAddress) throws(HypervisorError) {
        try control().writePhysical(bytes, at: address.rawValue)
    }

    public var writesDataWhileRunning: Bool { ram.isWritable }

    public func writeData(_ bytes: [UInt8], at address: GuestPhysicalAddress) throws(HypervisorError) {
        try ram.write(bytes, at: address)
        do throws(HypervisorError) {
            try guardian?.check()
        } catch {
            // Vigil was stopped between the check before and the store, and the guardian has taken over
            // meanwhile: where this was written, it had put zeroes.
            if error == .takenOver { try ram.write([UInt8](repeating: 0, count: bytes.count), at: address) }
            throw error
        }
    }
}
