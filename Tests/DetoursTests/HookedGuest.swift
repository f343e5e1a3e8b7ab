import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import WindowsGuest
import X86

/// A fake guest that stands, with a patchless detour on its power function.
final class HookedGuest {
    let guest: FakeGuest
    let effects: GuestEffects
    let debugRegisters: DebugRegisterTable
    let detour: PatchlessDetour
    let slack: GuestVirtualAddress
    let slackPhysical: UInt64
    static let delayFunction = GuestVirtualAddress(0xffff_f806_4a21_1111)

    var machine: FakeMachine { guest.machine }
    let handler = DetourHandler()

    init(
        vcpus: Int = 1, waiting: WaitingWay = .handler, hasSlack: Bool = true, jump: Bool = false,
        means: WaitingMeans = .init(delayFunction: delayFunction, sharedData: SharedUserData.address)
    ) throws {
        guest = FakeGuest(vcpus: vcpus, threads: 8)
        let kernel = try guest.locateKernel()
        effects = GuestEffects(machine: guest.machine)
        debugRegisters = DebugRegisterTable(effects)
        slack = try KernelSlack.find(DetourHandler.length, in: kernel).address
        slackPhysical = try kernel.memory.translate(slack).physical.rawValue
        var inline: InlineDetour?
        if jump {
            guest.kernel.write(InlineDetourGuest.plain, at: guest.entry.rawValue)
            var place = try KernelSlack.find(DetourHandler.length + 128, in: kernel)
            place.address = place.address + 448
            place.available -= 448
            inline = InlineDetour(
                entry: guest.entry, slack: place, memory: kernel.memory, effects: effects, allowVisiblePatches: true)
        }
        detour = PatchlessDetour(
            entry: guest.entry, effects: effects, debugRegisters: debugRegisters, memory: kernel.memory,
            waiting: waiting, slack: hasSlack ? slack : nil, means: means, inline: inline)
        try effects.takeControl {}
        // The test's own stop: a caller at the entry.
        guest.machine.become(.stoppedByDebugger)
        guest.machine.clearLog()
    }

    /// What lies where the handler goes.
    var slackBytes: [UInt8] {
        (0..<DetourHandler.length).map { guest.ram.load(UInt8.self, at: slackPhysical + UInt64($0)) }
    }

    var slackIsZero: Bool { slackBytes.allSatisfy { $0 == 0 } }

    /// A caller stands at the entry and is sent into the handler.
    func hold(thread: Int = 0, vcpu: Int = 0) throws -> (PatchlessDetour.Holder, Registers) {
        let call = guest.call(thread: thread, vcpu: vcpu)
        machine.registers[vcpu] = call
        return (try detour.hold(VCPU(vcpu), call), call)
    }

    /// 64-bit public data as the guest sees them.
    func value(of data: DetourHandler.PublicData) -> UInt64 {
        guest.ram.load(UInt64.self, at: slackPhysical + UInt64(handler.range(of: data).lowerBound))
    }

    func waitByte(_ slot: Int) -> UInt8 {
        guest.ram.load(UInt8.self, at: slackPhysical + UInt64(handler.range(of: .spinWait).lowerBound + slot))
    }
}
