import GuestMemory
import HypervisorInterface
import Introspection
import PowerTransitions
import TestSupport
import WindowsGuest
import X86

/// One session of the engine with a fake guest, and what it reported.
final class EngineRun {
    let guest: FakeGuest
    var options = EngineOptions()
    private(set) var events: [String] = []
    private(set) var attachments: [Attachment] = []
    private(set) var awakenings: [Awakening] = []
    private(set) var warnings: [String] = []
    private(set) var detachment: Detachment?
    private(set) var error: EngineError?
    private(set) var reason: Detachment.Reason?

    var machine: FakeMachine { guest.machine }

    init(_ guest: FakeGuest = FakeGuest()) {
        self.guest = guest
        options.waiting = .handler
    }

    /// Runs the engine on a script of events until it ends. With nothing left the wait is interrupted.
    func run(_ script: [(FakeMachine) -> MachineEvent?] = []) -> CallCounts {
        machine.script = script
        let engine = Engine(machine, options: options) { [unowned self] in note($0) }
        do throws(EngineError) {
            reason = try engine.run()
        } catch {
            self.error = error
        }
        return engine.calls
    }

    private func note(_ event: EngineEvent) {
        switch event {
        case .waiting(let reason): events.append("waiting: \(reason)")
        case .attached(let attachment):
            attachments.append(attachment)
            events.append("attached")
        case .awoken(let awakening):
            awakenings.append(awakening)
            events.append("awoken")
        case .warning(let warning): warnings.append(warning)
        case .detached(let detachment):
            self.detachment = detachment
            events.append("detached")
        case .commandStarted(let id, _): events.append("command started \(id.number)")
        case .commandEnded(let id, let end, _): events.append("command ended \(id.number) \(end)")
        case .power(.transitionRequested(let id, let request, _)):
            events.append("requested \(id.number) \(request.transition)")
        case .power(.outcome(let id, _, let result, _)): events.append("outcome \(id.number) \(result.rawValue)")
        case .power(.released(let id, let reason)): events.append("released \(id.number) \(reason.rawValue)")
        case .power(.unannounced(let event)): events.append("unannounced \(event)")
        case .power(.requestIgnored): events.append("ignored")
        case .power(.held(let id, _, _)): events.append("held \(id.number)")
        case .power(.repeatedlyRefused(let count, _)): events.append("refused \(count) times")
        case .agent(let event): events.append("agent \(event)")
        case .power(.notHeld(let id, _)): events.append("not held \(id.number)")
        }
    }

    /// A call reaches the entry.
    func entry(_ call: @escaping (FakeGuest) -> Registers, vcpu: Int = 0) -> (FakeMachine) -> MachineEvent? {
        { [guest] machine in machine.stop(vcpu, at: call(guest)) }
    }

    /// A call returns.
    func exit(_ call: @escaping (FakeGuest) -> Registers, status: UInt32) -> (FakeMachine) -> MachineEvent? {
        { [guest] machine in
            let registers = guest.returned(from: call(guest), status: status)
            machine.registers[0] = registers
            return machine.stop(0, .watchpoint(GuestVirtualAddress(registers.rsp - 8)))
        }
    }

    /// Nothing of Vigil is left, and nothing was done that must not be.
    var isClean: Bool {
        machine.sites.isEmpty && !machine.isControlled && machine.violations.isEmpty
    }
}
