import Detours
import GuestMemory
import HypervisorInterface
import PowerTransitions
import TestSupport
import WindowsGuest
import X86

/// A fake guest with an armed power guard, whose clock and stops are the test's.
final class GuardedGuest {
    let guest: FakeGuest
    let effects: GuestEffects
    let detour: PatchlessDetour
    let powerGuard: PowerGuard
    /// What was reported, in words.
    private(set) var events: [String] = []
    private(set) var callers: [Caller] = []
    private(set) var held: [(duration: Duration, stops: Int)] = []
    private final class Clock { var now = ContinuousClock.now }
    private let clock = Clock()
    private final class Sink { var report: (PowerEvent) -> Void = { _ in } }

    var machine: FakeMachine { guest.machine }

    convenience init(
        reentryIsProved: Bool = true, hold: Duration? = nil, waiting: WaitingWay = .handler, vcpus: Int = 1,
        threads: Int = 6
    ) throws {
        try self.init(
            reentryIsProved: reentryIsProved, options: PowerGuardOptions(hold: hold), waiting: waiting, vcpus: vcpus,
            threads: threads)
    }

    static let delayFunction = GuestVirtualAddress(0xffff_f806_4a21_1111)

    init(
        reentryIsProved: Bool = true, options: PowerGuardOptions, waiting: WaitingWay = .handler, vcpus: Int = 1,
        threads: Int = 6, jump: Bool = false
    ) throws {
        guest = FakeGuest(vcpus: vcpus, threads: threads)
        if waiting == .delay { guest.addPush() }
        if jump {
            // push rbx; sub rsp, 30h; nop; nop
            guest.kernel.write([0x40, 0x53, 0x48, 0x83, 0xec, 0x30, 0x90, 0x90] as [UInt8], at: guest.entry.rawValue)
        }
        let kernel = try guest.locateKernel()
        effects = GuestEffects(machine: guest.machine)
        var inline: InlineDetour?
        if jump {
            var place = try KernelSlack.find(DetourHandler.length + 64, in: kernel)
            place.address = place.address + UInt64(DetourHandler.length)
            inline = InlineDetour(
                entry: guest.entry, slack: place, memory: kernel.memory, effects: effects, allowVisiblePatches: true)
        }
        detour = PatchlessDetour(
            entry: guest.entry, effects: effects, debugRegisters: DebugRegisterTable(effects), memory: kernel.memory,
            waiting: waiting,
            slack: try KernelSlack.find(DetourHandler.length, in: kernel).address,
            means: WaitingMeans(
                delayFunction: waiting == .delay ? Self.delayFunction : nil, sharedData: SharedUserData.address,
                push: PushInstruction(near: guest.entry, in: kernel.memory)), inline: inline)
        let sink = Sink()
        powerGuard = PowerGuard(
            detour: detour, callers: CallerReader(kernel: kernel, offsets: try KernelOffsets(of: kernel)),
            reentryIsProved: reentryIsProved, options: options, now: { [clock] in clock.now },
            report: { sink.report($0) })
        sink.report = { [unowned self] in note($0) }
        let armed = detour
        var failure: (any Error)?
        try effects.takeControl { () throws(HypervisorError) in
            do throws(DetourError) { try armed.arm() } catch { failure = error }
        }
        if let failure { throw failure }
        guest.machine.clearLog()
    }

    private func note(_ event: PowerEvent) {
        switch event {
        case .transitionRequested(let id, let request, let caller):
            callers.append(caller)
            events.append("requested \(id.number) \(request.transition) \(caller.mode)")
        case .requestIgnored(_, let caller, _, let status):
            callers.append(caller)
            events.append("ignored \(caller.mode) \(Self.text(status))")
        case .held(let id, let duration, let stops):
            held.append((duration, stops))
            events.append("held \(id.number)")
        case .released(let id, let reason): events.append("released \(id.number) \(reason.rawValue)")
        case .notHeld(let id, _): events.append("not held \(id.number)")
        case .outcome(let id, let transition, let result, let status):
            events.append("outcome \(id.number) \(transition) \(result.rawValue) \(Self.text(status))")
        case .repeatedlyRefused(let count, _): events.append("refused \(count) times")
        case .unannounced(let event): events.append("unannounced \(event)")
        }
    }

    private static func text(_ status: UInt32?) -> String { status.map { "0x" + String($0, radix: 16) } ?? "null" }

    func pass(_ time: Duration) { clock.now += time }

    /// When something is due, counted from now.
    func tick() throws -> Duration? { try powerGuard.tick().map { $0 - clock.now } }

    /// A vCPU stops at the entry; the machine runs on afterwards.
    func enter(_ call: Registers, vcpu: Int = 0) throws {
        _ = machine.stop(vcpu, at: call)
        effects.noteStop()
        try powerGuard.handlePowerStateChange(VCPU(vcpu), call)
        try effects.resumeFromStop()
    }

    /// A vCPU stops because a watched stack slot was accessed.
    func access(_ registers: Registers, vcpu: Int = 0) throws {
        machine.registers[vcpu] = registers
        _ = machine.stop(vcpu, .watchpoint(GuestVirtualAddress(registers.rsp &- 8)))
        effects.noteStop()
        try powerGuard.handleAccess(VCPU(vcpu), registers)
        try effects.resumeFromStop()
    }

    /// A call returns with a status.
    func leave(_ call: Registers, status: UInt32) throws { try access(guest.returned(from: call, status: status)) }

    /// The handler's wait byte of a slot, as the guest would see it.
    func waitByte(_ slot: Int = 0) -> UInt8? {
        for action in machine.log.reversed() {
            if case .announced(.handler(let location?)) = action {
                return guest.ram.load(UInt8.self, at: location.physical.rawValue + UInt64(location.waitOffset + slot))
            }
        }
        return nil
    }

    /// Where the caller of a vCPU now is.
    func isInHandler(_ vcpu: Int = 0) -> Bool { detour.isInHandler(machine.registers[vcpu].rip) }
}
