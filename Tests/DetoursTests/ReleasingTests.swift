import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import X86

@Suite("Letting held callers go") struct ReleasingTests {
    @Test("Releasing writes one byte, and needs no stop")
    func oneByte() throws {
        let test = try HookedGuest()
        let (holder, _) = try test.hold()
        test.machine.become(.running)
        test.machine.clearLog()
        try test.detour.release(slot: holder.slot)
        let place = GuestPhysicalAddress(test.slackPhysical + UInt64(test.handler.range(of: .spinWait).lowerBound))
        #expect(test.machine.actions == [.wroteData(place, [0])])
        #expect(test.waitByte(0) == 0 && test.detour.holders[0].isReleased && test.machine.violations == [])
    }

    @Test("Releasing a slot that nobody is in writes nothing")
    func emptySlot() throws {
        let test = try HookedGuest()
        try test.detour.release(slot: 0)
        _ = try test.hold()
        test.machine.clearLog()
        for slot in [1, 7, 8, -1] { try test.detour.release(slot: slot) }
        #expect(test.machine.log == [] && test.waitByte(0) == 1)
    }

    @Test("A caller back at the entry is recognised by its stack; others there, and it elsewhere, are not")
    func recognised() throws {
        let test = try HookedGuest()
        let (holder, call) = try test.hold()
        #expect(test.detour.returningHolder(call) == holder)
        #expect(test.detour.returningHolder(test.machine.registers[0]) == nil)
        #expect(test.detour.returningHolder(test.guest.call(thread: 1)) == nil)
        var deeper = call
        deeper.rsp -= 8
        #expect(test.detour.returningHolder(deeper) == nil)
    }

    @Test("The handler is zeroed when the last caller is back, and not before; witnesses hear of that afterwards")
    func lastOneOut() throws {
        let test = try HookedGuest(vcpus: 2)
        let (first, _) = try test.hold(thread: 0, vcpu: 0)
        let (second, _) = try test.hold(thread: 1, vcpu: 1)
        #expect(first.slot == 0 && second.slot == 1)
        #expect(test.machine.registers[1].rip == test.slack.rawValue + UInt64(test.handler.stubOffset(slot: 1)))
        test.machine.clearLog()
        try test.detour.takeBack(first, VCPU(0), Registers())
        #expect(test.machine.log == [.announced(.release(slot: 0))] && test.detour.isHandlerPresent)
        try test.detour.takeBack(second, VCPU(0), Registers())
        #expect(test.slackIsZero && !test.detour.isHandlerPresent && test.detour.holders.isEmpty)
        let zeroes = FakeMachine.Action.wroteCode(
            GuestPhysicalAddress(test.slackPhysical), [UInt8](repeating: 0, count: DetourHandler.length))
        #expect(test.machine.log.suffix(2) == [zeroes, .announced(.handler(nil))])
        #expect(test.machine.violations == [])
    }

    @Test("Eight callers fill the handler, a ninth is refused unchanged, and a slot given back is used again")
    func slots() throws {
        let test = try HookedGuest()
        var holders: [PatchlessDetour.Holder] = []
        for thread in 0..<8 { holders.append(try test.hold(thread: thread).0) }
        #expect(holders.map(\.slot) == Array(0..<8) && (0..<8).allSatisfy { test.waitByte($0) == 1 })
        var ninth = test.guest.call(thread: 0)
        ninth.rsp -= 0x100
        test.machine.registers[0] = ninth
        test.machine.clearLog()
        guard
            case .noFreeSlot = PatchlessDetourTests.error({ () throws(DetourError) in
                _ = try test.detour.hold(VCPU(0), ninth)
            })
        else {
            Issue.record("a ninth caller was held")
            return
        }
        #expect(test.machine.log == [] && test.machine.registers[0] == ninth)
        try test.detour.takeBack(holders[5], VCPU(0), Registers())
        #expect(try test.detour.hold(VCPU(0), ninth).slot == 5)
    }

    @Test("The handler is written again for the next caller, with every wait byte and the lease at their start")
    func again() throws {
        let test = try HookedGuest()
        let (first, _) = try test.hold()
        try test.detour.renewLease()
        try test.detour.takeBack(first, VCPU(0), Registers())
        _ = try test.hold(thread: 1)
        #expect(test.waitByte(0) == 1 && (1..<8).allSatisfy { test.waitByte($0) == 0 })
        #expect(test.value(of: .lease) == 0)
    }

    @Test("Each renewal of the lease changes its byte, round and round, and no other")
    func lease() throws {
        let test = try HookedGuest()
        try test.detour.renewLease()
        #expect(test.machine.log == [])
        _ = try test.hold()
        let place = GuestPhysicalAddress(test.slackPhysical + UInt64(test.handler.range(of: .lease).lowerBound))
        var last = UInt8(truncatingIfNeeded: test.value(of: .lease))
        for _ in 0..<600 {
            test.machine.clearLog()
            try test.detour.renewLease()
            let now = UInt8(truncatingIfNeeded: test.value(of: .lease))
            #expect(now != last && test.machine.actions == [.wroteData(place, [now])])
            last = now
        }
    }

    @Test("After a reset nothing is written to the machine, and witnesses hear that nobody is held")
    func forgets() throws {
        let test = try HookedGuest()
        let (holder, _) = try test.hold()
        test.machine.clearLog()
        try test.detour.forgetEverything()
        #expect(test.machine.log == [.announced(.release(slot: holder.slot)), .announced(.handler(nil))])
        test.machine.clearLog()
        try test.detour.release(slot: holder.slot)
        try test.detour.renewLease()
        #expect(test.machine.log == [] && !test.detour.isHandlerPresent && test.detour.holders.isEmpty)
    }

    @Test(
        "A hold that fails on the way leaves its caller where it stands",
        arguments: [
            FakeMachine.Operation.announce, .writeCode, .writeData, .setRegisters,
        ])
    func failing(operation: FakeMachine.Operation) throws {
        let test = try HookedGuest()
        let call = test.guest.call()
        test.machine.registers[0] = call
        let failure = HypervisorError.unsupported("made to fail")
        test.machine.failures = [operation: [failure]]
        let thrown = PatchlessDetourTests.error { () throws(DetourError) in _ = try test.detour.hold(VCPU(0), call) }
        guard case .hypervisor(failure) = thrown else {
            Issue.record("\(String(describing: thrown))")
            return
        }
        #expect(test.machine.registers[0] == call && test.detour.holders.isEmpty)
    }

    @Test("What is not the handler any more is not zeroed: the guest may have been reset", arguments: [0, 0x60, 447])
    func notTheHandler(offset: Int) throws {
        let test = try HookedGuest()
        let (holder, _) = try test.hold()
        let data = DetourHandler.PublicData.allCases.contains { test.handler.range(of: $0).contains(offset) }
        let place = test.slackPhysical + UInt64(offset)
        test.guest.ram.store(test.guest.ram.load(UInt8.self, at: place) ^ 0xff, at: place)
        let before = test.slackBytes
        test.machine.clearLog()
        try test.detour.takeBack(holder, VCPU(0), Registers())
        // Data are the handler's to change.
        #expect(data ? test.slackIsZero : test.slackBytes == before)
        #expect(!test.detour.isHandlerPresent && test.machine.announcements.last == .handler(nil))
    }
}
