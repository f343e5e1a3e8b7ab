import CLinux
import Glibc
import GuestMemory
import HypervisorInterface
import X86

/// A running QEMU, reached by its QMP socket.
///
/// QEMU needs no option, no patch and no restart for this; the gdbstub is started when control is taken.
public final class QEMUMachine {
    public let identity: MachineIdentity
    let qmp: QMPClient
    let pulse: Pulse
    let ram: GuestRAM
    /// The debug connection, while there is one.
    var stub: GDBStub?
    var guardian: GuardianLink?
    /// Whether the debug connection was opened on a path that QEMU was given, or over the network.
    let isLocal: Bool
    /// The gdbstub's thread that `g` and `P` work on now.
    var selectedThread: Int?
    public internal(set) var vcpuCount = 0
    /// The vCPU that the last stop named: what QEMU remembers of its watched access ended with that.
    var lastStopped: VCPU?
    /// The vCPUs that wait in `hlt`, asked once for each time that the machine stands.
    var haltedVCPUs: Set<VCPU>?
    /// A STOP that was not ours has been seen, and no start since.
    var isStoppedByOperator = false
    /// Set where the guardian's executable is known: the program and its leading arguments.
    var guardianCommand: [String]?
    public var watchedDescriptors: [Int32] = []
    /// A descriptor; a byte that can be read there is taken and ends `nextEvent`'s wait. -1 for none.
    public var wakeDescriptor: Int32 = -1

    /// Connects to a QEMU.
    /// - Parameters:
    ///   - guardianCommand: the program that becomes the guardian, and its leading arguments; without it
    ///     control cannot be taken.
    /// - Throws: `cannotConnect`, `heldByAnotherClient`.
    public init(_ target: QEMUTarget, guardianCommand: [String]?) throws(HypervisorError) {
        pulse = Pulse()
        let socket = try target.connect()
        if case .unix = target { isLocal = true } else { isLocal = false }
        qmp = QMPClient(socket: socket, pulse: pulse)
        let version = try qmp.negotiate(target: target.description)
        let peer = isLocal ? clinux_peer_pid(socket.descriptor) : 0
        let pid = peer > 0 ? peer : nil
        let name = try qmp.execute("query-name")["name"]?.string
        let uuid = try qmp.execute("query-uuid")["UUID"]?.string
        ram = try GuestRAM(monitor: qmp, pid: pid)
        identity = MachineIdentity(
            name: name, uuid: uuid == "00000000-0000-0000-0000-000000000000" ? nil : uuid, processID: pid,
            processStart: pid.flatMap { [ram] in ram.isInProcess ? ProcessStart.of($0) : nil },
            hypervisor: "QEMU \(version)")
        self.guardianCommand = guardianCommand
    }
}

extension QEMUMachine: VirtualMachine {
    public var memory: PhysicalMemory { ram.memory }
    public var memoryAccess: String { ram.access }

    public func runState() throws(HypervisorError) -> RunState { try QEMUMachine.runState(qmp) }

    /// QEMU's run state. Names: qapi/run-state.json.
    static func runState(_ qmp: QMPClient) throws(HypervisorError) -> RunState {
        switch try qmp.execute("query-status")["status"]?.string ?? "" {
        case "running": .running
        case "paused": .paused
        case "debug": .stoppedByDebugger
        case "suspended": .suspended
        case "prelaunch": .notStarted
        case "shutdown": .poweredOff
        case "guest-panicked": .guestPanicked
        case let other: .other(other)
        }
    }

    public func processorTables() throws(HypervisorError) -> [ProcessorTables] {
        MonitorText.processorTables(try qmp.monitor("info registers -a"))
    }

    public func nextEvent(until deadline: Deadline) throws(HypervisorError) -> MachineEvent? {
        while true {
            do throws(HypervisorError) {
                if let event = try pendingEvent() { return event }
                try qmp.checkOpen()
                try guardian?.check()
            } catch {
                guard case .gone(let reason) = error else { throw error }
                // Closed sockets look the same whether QEMU ended or the guardian shut them.
                try guardian?.check()
                return .gone(reason: reason)
            }
            var descriptors = [qmp.socket.descriptor]
            if let stub { descriptors.append(stub.socket.descriptor) }
            if let guardian { descriptors.append(guardian.descriptor) }
            let ownCount = descriptors.count
            descriptors += watchedDescriptors
            if wakeDescriptor >= 0 { descriptors.append(wakeDescriptor) }
            let ready = try pulse.waitForInput(descriptors, until: deadline)
            if wakeDescriptor >= 0, ready.last == true {
                var byte: UInt8 = 0
                _ = read(wakeDescriptor, &byte, 1)
                return .interrupted
            }
            if !ready.contains(true) { return nil }
            // What the machine says comes first.
            if !ready[..<ownCount].contains(true), let index = ready.firstIndex(of: true) {
                return .descriptorReady(descriptors[index])
            }
            qmp.takeInput()
        }
    }

    /// The next event among those that have arrived.
    private func pendingEvent() throws(HypervisorError) -> MachineEvent? {
        // QEMU writes a stop to the debug connection before it says STOP by QMP, so that when QMP is read
        // first, whatever STOP is found there has its stop reply here.
        qmp.takeInput()
        do throws(HypervisorError) {
            if let stop = try pendingStop() { return stop }
        } catch {
            // The debug connection's end is the machine's end, but what QMP said before it comes first.
            guard case .gone = error, qmp.hasEvents else { throw error }
        }
        while let event = qmp.takeEvent() {
            if let host = hostEvent(event) { return .host(host) }
        }
        return nil
    }

    private func pendingStop() throws(HypervisorError) -> MachineEvent? {
        while let reply = try stub?.takeStop() {
            switch reply {
            case .trap(let thread, let watch):
                // QEMU has selected the thread that stopped.
                selectedThread = nil
                lastStopped = VCPU(thread - 1)
                return .stop(
                    Stop(
                        vcpu: VCPU(thread - 1),
                        reason: watch.map { .watchpoint(GuestVirtualAddress($0)) } ?? .breakpoint))
            case .interrupted, .poweredOff, .exited:
                // Said by QMP too, in the same moment, and more exactly.
                continue
            }
        }
        return nil
    }

    /// What a QMP event says of the machine, or nil where it says nothing new.
    private func hostEvent(_ event: QMPEvent) -> HostEvent? {
        let byGuest = event.data["guest"]?.bool ?? false
        switch event.name {
        case "SUSPEND": return .suspended
        case "WAKEUP":
            stub?.noteWoken()
            return .wokeUp
        case "SUSPEND_DISK": return .suspendedToDisk
        case "RESET": return .reset(byGuest: byGuest)
        case "SHUTDOWN": return .poweredOff(byGuest: byGuest)
        case "POWERDOWN": return .powerButtonPressed
        case "GUEST_PANICKED": return .guestPanicked
        case "STOP":
            if let stub, stub.stopsToBeReported > 0 {
                stub.stopsToBeReported -= 1
                return nil
            }
            isStoppedByOperator = true
            return .stoppedByOperator
        case "RESUME":
            if let stub, stub.startsToBeReported > 0 {
                stub.startsToBeReported -= 1
                return nil
            }
            isStoppedByOperator = false
            stub?.noteStartedByOthers()
            return .startedByOperator
        default: return nil
        }
    }
}
