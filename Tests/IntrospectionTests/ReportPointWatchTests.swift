import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import X86

@testable import Introspection

@Suite("Changes of translations that are told at once") struct ReportPointWatchTests {
    private final class Guest {
        let machine = FakeMachine(ram: SyntheticRAM(size: 1 << 16), vcpus: 3)
        let effects: GuestEffects
        let table: DebugRegisterTable
        var warnings: [String] = []
        private(set) var time = ContinuousClock.now
        private(set) lazy var watch = ReportPointWatch(
            table, now: { [unowned self] in time }, warn: { [unowned self] in warnings.append($0) })

        init() throws {
            effects = GuestEffects(machine: machine)
            table = DebugRegisterTable(effects)
            try effects.takeControl {}
            machine.clearLog()
        }

        func pass(_ duration: Duration) { time += duration }

        /// Takes registers for calls, in a stop.
        func occupy(_ slots: Range<UInt64>) throws -> [Bool] {
            try effects.withPaused { () throws(HypervisorError) in
                var taken: [Bool] = []
                for slot in slots {
                    taken.append(
                        try table.acquire(
                            .returnWatch(stackSlot: slot), .access(GuestVirtualAddress(8 * slot), length: 8)))
                }
                return taken
            }
        }

        func free(_ slots: Range<UInt64>) throws {
            try effects.withPaused { () throws(HypervisorError) in
                for slot in slots { try table.release(.returnWatch(stackSlot: slot)) }
            }
        }
    }

    private static let point = GuestVirtualAddress(0xffff_b900_0000_0123)

    @Test("It is watched where the filter is, follows it when it moves, and is gone when it is gone")
    func follows() throws {
        let guest = try Guest()
        #expect(try guest.watch.tick(nil) == nil && guest.machine.log.isEmpty)
        #expect(try guest.watch.tick(Self.point) == nil)
        #expect(guest.machine.sites == [.execution(Self.point)] && guest.table.holds(.reportPoint))
        guest.machine.clearLog()
        #expect(try guest.watch.tick(Self.point) == nil && guest.machine.log.isEmpty)
        #expect(try guest.watch.tick(Self.point + 0x1000) == nil)
        #expect(guest.machine.sites == [.execution(Self.point + 0x1000)])
        _ = try guest.watch.tick(nil)
        #expect(guest.machine.sites == [] && guest.warnings == [] && guest.machine.violations == [])
    }

    @Test("Calls take its register, no fifth is ever in use, and it has one again when one is free")
    func givenUp() throws {
        let guest = try Guest()
        _ = try guest.watch.tick(Self.point)
        #expect(try guest.occupy(0..<5) == [true, true, true, true, false])
        #expect(!guest.table.holds(.reportPoint) && guest.machine.mostSites == 4)
        guest.machine.clearLog()
        #expect(try guest.watch.tick(Self.point) != nil)
        // Nothing is stopped for what cannot be had.
        #expect(guest.machine.log.isEmpty && !guest.table.holds(.reportPoint))
        try guest.free(0..<1)
        #expect(try guest.watch.tick(Self.point) == nil && guest.table.holds(.reportPoint))
        #expect(guest.machine.mostSites == 4 && guest.machine.violations == [])
    }

    @Test("Who writes page tables is looked for with what is left: the report point takes a register of that")
    func beforeTheSearch() throws {
        let guest = try Guest()
        _ = try guest.occupy(0..<2)
        let entries = [0x1010, 0x1018].map { GuestVirtualAddress($0) }
        try guest.effects.withPaused { () throws(HypervisorError) in
            for entry in entries {
                #expect(try guest.table.acquire(.entryWatch(entry), .access(entry, length: 8)))
            }
        }
        #expect(try guest.watch.tick(Self.point) == nil && guest.table.holds(.reportPoint))
        #expect(entries.map { guest.table.holds(.entryWatch($0)) } == [true, false] && guest.machine.mostSites == 4)
        // But never the other way.
        try guest.effects.withPaused { () throws(HypervisorError) in
            #expect(try !guest.table.acquire(.entryWatch(entries[1]), .access(entries[1], length: 8)))
        }
        // A call takes from the search first.
        #expect(try guest.occupy(2..<3) == [true] && guest.table.holds(.reportPoint))
        #expect(!guest.table.holds(.entryWatch(entries[0])) && guest.machine.violations == [])
    }

    @Test("A register that stays away is said once, and once more the next time")
    func warns() throws {
        let guest = try Guest()
        for round in 1...2 {
            _ = try guest.occupy(0..<4)
            _ = try guest.watch.tick(Self.point)
            guest.pass(ReportPointWatch.patience - .milliseconds(1))
            _ = try guest.watch.tick(Self.point)
            #expect(guest.warnings.count == round - 1)
            guest.pass(.milliseconds(1))
            _ = try guest.watch.tick(Self.point)
            guest.pass(.seconds(5))
            _ = try guest.watch.tick(Self.point)
            #expect(guest.warnings.count == round)
            #expect(guest.warnings.last?.contains("no debug register is left") == true)
            try guest.free(0..<4)
            _ = try guest.watch.tick(Self.point)
            #expect(guest.table.holds(.reportPoint))
        }
    }

    @Test("Who stands at the point is recognised as long as it is watched, and goes on by one step")
    func arrivals() throws {
        let guest = try Guest()
        var registers = Registers()
        registers.rip = Self.point.rawValue
        #expect(!guest.watch.isArrival(registers))
        _ = try guest.watch.tick(Self.point)
        for vcpu in [0, 2] {
            guest.machine.registers[vcpu].rip = Self.point.rawValue
            guest.machine.registers[vcpu].rax = UInt64(40 + vcpu)
        }
        guest.machine.registers[1].rax = 41
        _ = guest.machine.stop(2, at: guest.machine.registers[2])
        guest.effects.noteStop()
        #expect(guest.watch.isArrival(guest.machine.registers[0]) && !guest.watch.isArrival(guest.machine.registers[1]))
        #expect(try guest.watch.standingReports() == [40, 42])
        try guest.watch.stepOver(VCPU(2))
        #expect(guest.machine.registers[2].rip != Self.point.rawValue)
        #expect(try guest.watch.standingReports() == [40] && guest.table.holds(.reportPoint))
        try guest.watch.release()
        #expect(try guest.watch.standingReports() == [] && guest.machine.sites == [])
        #expect(guest.machine.violations == [])
    }
}
