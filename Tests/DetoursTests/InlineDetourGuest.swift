import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import WindowsGuest
import X86

/// A fake guest with an inline detour for a function that the test writes.
final class InlineDetourGuest {
    let guest: FakeGuest
    let effects: GuestEffects
    let kernel: WindowsKernel
    let entry: GuestVirtualAddress
    let slack: KernelSlack
    let detour: InlineDetour

    var machine: FakeMachine { guest.machine }
    var ram: SyntheticRAM { guest.ram }

    /// push rbx; sub rsp, 30h; nothing; ret
    static let plain: [UInt8] = [0x40, 0x53, 0x48, 0x83, 0xec, 0x30, 0x90, 0x90, 0x48, 0x83, 0xc4, 0x30, 0x5b, 0xc3]

    /// - Parameters:
    ///   - code: the function's bytes.
    ///   - pageOffset: where in its page the function starts; by default at the power function's place.
    init(
        code: [UInt8] = plain, pageOffset: UInt64? = nil, vcpus: Int = 1, allowed: Bool = true,
        stopPoint: InlineDetourPlan.StopPoint = .outOfBand, slackOffset: UInt64 = 0
    ) throws {
        guest = FakeGuest(vcpus: vcpus)
        kernel = try guest.locateKernel()
        effects = GuestEffects(machine: guest.machine)
        let place = guest.entry
        entry = pageOffset.map { place.page + $0 } ?? place
        var slack = try KernelSlack.find(InlineDetourPlan.maximumHandlerLength, in: kernel)
        slack.address = slack.address + slackOffset
        slack.available -= slackOffset
        self.slack = slack
        detour = InlineDetour(
            entry: entry, slack: slack, memory: kernel.memory, effects: effects, allowVisiblePatches: allowed,
            stopPoint: stopPoint)
        guest.kernel.write(code + [UInt8](repeating: 0xcc, count: 16), at: entry.rawValue)
        try effects.takeControl {}
        guest.machine.clearLog()
    }

    func bytes(_ address: GuestVirtualAddress, _ count: Int) -> [UInt8] {
        (try? kernel.memory.bytes(at: address, count: UInt64(count))) ?? []
    }

    func physical(_ address: GuestVirtualAddress) throws -> GuestPhysicalAddress {
        try kernel.memory.translate(address).physical
    }

    /// All of the guest's RAM, for comparing.
    var snapshot: [UInt8] { Array(UnsafeRawBufferPointer(ram.bytes)) }

    func setRIP(_ rip: GuestVirtualAddress, vcpu: Int = 0) { machine.registers[vcpu].rip = rip.rawValue }
    func rip(vcpu: Int = 0) -> GuestVirtualAddress { GuestVirtualAddress(machine.registers[vcpu].rip) }
}
