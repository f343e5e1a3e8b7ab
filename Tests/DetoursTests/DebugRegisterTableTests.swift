import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing

@Suite("Who holds which debug register") struct DebugRegisterTableTests {
    static func watch(_ slot: UInt64) -> BreakpointSite { .access(GuestVirtualAddress(slot), length: 8) }

    static func make(capacity: Int = 4) throws -> (FakeMachine, DebugRegisterTable) {
        let machine = FakeMachine(ram: SyntheticRAM(size: 1 << 16))
        machine.capacity = capacity
        let effects = GuestEffects(machine: machine)
        try effects.takeControl {}
        // The test's own stop: all of this happens in a standing machine.
        machine.become(.paused)
        machine.clearLog()
        return (machine, DebugRegisterTable(effects))
    }

    @Test(
        "There are four, or fewer where the machine has fewer, and never more",
        arguments: [(4, 4), (2, 2), (0, 0), (64, 4)])
    func capacity(has: Int, used: Int) throws {
        let (machine, table) = try Self.make(capacity: has)
        var taken = 0
        for slot in 0..<8 as Range<UInt64>
        where try table.acquire(.returnWatch(stackSlot: slot * 8), Self.watch(slot * 8)) {
            taken += 1
        }
        #expect(taken == used && table.inUse == used && machine.sites.count == used)
        #expect(table.registers.count == used && machine.violations == [])
    }

    @Test("A register that was given back is free for the next")
    func reuse() throws {
        let (machine, table) = try Self.make()
        for slot in 0..<4 as Range<UInt64> {
            #expect(try table.acquire(.returnWatch(stackSlot: slot), Self.watch(slot)))
        }
        #expect(try !table.acquire(.entry, .execution(GuestVirtualAddress(9))))
        try table.release(.returnWatch(stackSlot: 2))
        #expect(table.inUse == 3 && machine.sites.count == 3 && !machine.sites.contains(Self.watch(2)))
        #expect(try table.acquire(.entry, .execution(GuestVirtualAddress(9))))
        #expect(machine.sites.contains(.execution(GuestVirtualAddress(9))))
    }

    @Test("A purpose's site moves within its register; a purpose without one moves nothing")
    func move() throws {
        let (machine, table) = try Self.make()
        for slot in 0..<4 as Range<UInt64> {
            #expect(try table.acquire(.returnWatch(stackSlot: slot), Self.watch(slot)))
        }
        try table.move(.returnWatch(stackSlot: 1), to: Self.watch(0x10))
        #expect(table.registers[1]?.site == Self.watch(0x10) && machine.sites.contains(Self.watch(0x10)))
        #expect(!machine.sites.contains(Self.watch(1)) && table.inUse == 4 && machine.mostSites == 4)
        machine.clearLog()
        try table.move(.returnWatch(stackSlot: 1), to: Self.watch(0x10))
        try table.move(.entry, to: Self.watch(0x20))
        #expect(machine.log == [] && machine.violations == [])
    }

    @Test("A site that is set already is not taken a second time, and stays set")
    func sameSite() throws {
        let (machine, table) = try Self.make()
        #expect(try table.acquire(.returnWatch(stackSlot: 8), Self.watch(8)))
        #expect(try !table.acquire(.returnWatch(stackSlot: 8), Self.watch(8)))
        #expect(table.inUse == 1 && machine.sites == [Self.watch(8)])
    }

    @Test("Giving back what was never taken does nothing")
    func unknownPurpose() throws {
        let (machine, table) = try Self.make()
        _ = try table.acquire(.entry, .execution(GuestVirtualAddress(9)))
        machine.clearLog()
        try table.release(.returnWatch(stackSlot: 8))
        #expect(machine.log == [] && table.inUse == 1)
    }

    @Test("All are given back at once")
    func releaseAll() throws {
        let (machine, table) = try Self.make()
        for slot in 0..<3 as Range<UInt64> { _ = try table.acquire(.returnWatch(stackSlot: slot), Self.watch(slot)) }
        try table.releaseAll()
        #expect(table.inUse == 0 && machine.sites.isEmpty && machine.violations == [])
    }

    @Test("A site that cannot be set takes no register, and one that cannot be removed keeps its own")
    func failures() throws {
        let (machine, table) = try Self.make()
        let failure = HypervisorError.unsupported("made to fail")
        machine.failures = [.insert: [failure]]
        #expect(throws: failure) { try table.acquire(.entry, .execution(GuestVirtualAddress(9))) }
        #expect(table.inUse == 0)
        _ = try table.acquire(.entry, .execution(GuestVirtualAddress(9)))
        machine.failures = [.remove: [failure, failure]]
        #expect(throws: failure) { try table.release(.entry) }
        #expect(throws: failure) { try table.releaseAll() }
        #expect(table.inUse == 1 && machine.sites.count == 1)
    }
}
