import HypervisorInterface
import PowerTransitions
import TestSupport
import Testing
import WindowsGuest

@Suite("Holding callers") struct HoldTests {
    static func held(_ duration: Duration = .seconds(2)) throws -> (GuardedGuest, () throws -> Void) {
        let test = try GuardedGuest(hold: duration)
        let call = test.guest.call(4, 6)
        try test.enter(call)
        return (test, { try test.enter(call) })
    }

    @Test("Without a hold a caller goes on at once and the guest's memory stays as it is")
    func notAsked() throws {
        let test = try GuardedGuest(hold: nil)
        try test.enter(test.guest.call())
        #expect(!test.isInHandler() && test.powerGuard.heldCallers == 0)
        #expect(!test.machine.actions.contains { if case .wroteCode = $0 { true } else { false } })
    }

    @Test("A caller is held for as long as was asked for, then let go, and enters the function")
    func forATime() throws {
        let (test, comesBack) = try Self.held(.seconds(2))
        #expect(test.isInHandler() && test.waitByte() == 1 && test.powerGuard.heldCallers == 1)
        test.pass(.seconds(2) - .nanoseconds(1))
        _ = try test.tick()
        #expect(test.waitByte() == 1)
        test.pass(.nanoseconds(1))
        _ = try test.tick()
        #expect(test.waitByte() == 0)
        #expect(test.events == ["requested 1 shutdown kernel"])
        test.pass(.milliseconds(3))
        try comesBack()
        #expect(test.events.dropFirst() == ["held 1", "released 1 hold-over"])
        #expect(test.held[0].duration == .seconds(2) + .milliseconds(3) && test.held[0].stops == 2)
        #expect(test.machine.registers[0].rip != test.guest.entry.rawValue && !test.detour.isHandlerPresent)
        #expect(test.powerGuard.heldCallers == 0 && test.powerGuard.counts.entries == 1)
        #expect(test.machine.violations == [])
    }

    @Test("Its outcome is seen afterwards as any other's")
    func outcome() throws {
        let test = try GuardedGuest(hold: .seconds(1))
        let call = test.guest.call(4, 6)
        try test.enter(call)
        test.pass(.seconds(1))
        _ = try test.tick()
        try test.enter(call)
        try test.leave(call, status: 0xc000_0001)
        #expect(test.events.last == "outcome 1 shutdown refused 0xc0000001")
        #expect(test.machine.sites == [test.guest.entrySite])
    }

    @Test("No caller is held longer than the deadline, and that is the reason given")
    func deadline() throws {
        let (test, comesBack) = try Self.held(.seconds(3600))
        test.pass(.seconds(10) - .nanoseconds(1))
        _ = try test.tick()
        #expect(test.waitByte() == 1)
        test.pass(.nanoseconds(1))
        _ = try test.tick()
        #expect(test.waitByte() == 0)
        try comesBack()
        #expect(test.events.last == "released 1 deadline")
    }

    @Test("A hold of exactly the deadline is not cut short by it")
    func exactDeadline() throws {
        let (test, comesBack) = try Self.held(.seconds(10))
        test.pass(.seconds(10))
        _ = try test.tick()
        try comesBack()
        #expect(test.events.last == "released 1 hold-over")
    }

    @Test("A caller that comes back unreleased has gone by itself: its lease expired")
    func leaseExpired() throws {
        let (test, comesBack) = try Self.held()
        try comesBack()
        #expect(test.events.dropFirst() == ["held 1", "released 1 lease-expired"])
        #expect(!test.detour.isHandlerPresent)
    }

    @Test("When Vigil leaves, held callers are let go, for that reason")
    func leaving() throws {
        let (test, comesBack) = try Self.held()
        try test.powerGuard.releaseAll()
        #expect(test.waitByte() == 0)
        try comesBack()
        #expect(test.events.last == "released 1 leaving")
    }

    @Test("Leaving after the time was over does not change the reason")
    func leavingLate() throws {
        let (test, comesBack) = try Self.held(.seconds(1))
        test.pass(.seconds(1))
        _ = try test.tick()
        try test.powerGuard.releaseAll()
        try comesBack()
        #expect(test.events.last == "released 1 hold-over")
    }

    @Test("The lease is renewed every 250 ms while a caller is in the handler, and then no more")
    func lease() throws {
        let (test, comesBack) = try Self.held(.seconds(2))
        test.machine.clearLog()
        func leaseWrites() -> Int { test.machine.actions.count { if case .wroteData = $0 { true } else { false } } }
        #expect(try test.tick() == .milliseconds(250))
        #expect(leaseWrites() == 1)
        test.pass(.milliseconds(249))
        #expect(try test.tick() == .milliseconds(1))
        #expect(leaseWrites() == 1)
        test.pass(.milliseconds(1))
        #expect(try test.tick() == .milliseconds(250))
        #expect(leaseWrites() == 2)
        try comesBack()
        test.pass(.seconds(5))
        test.machine.clearLog()
        _ = try test.tick()
        #expect(leaseWrites() == 0)
    }

    @Test("A caller that may not wait is let through, and that is said", arguments: [true, false])
    func cannotWait(interruptsOff: Bool) throws {
        let test = try GuardedGuest(hold: .seconds(1))
        var call = test.guest.call(4, 6)
        if interruptsOff { call.rflags &= ~0x200 } else { call.control.cr8 = 2 }
        try test.enter(call)
        #expect(test.events == ["requested 1 shutdown kernel", "not held 1"])
        #expect(!test.isInHandler() && test.machine.registers[0].rip != test.guest.entry.rawValue)
        #expect(test.powerGuard.heldCallers == 0 && !test.detour.isHandlerPresent)
    }

    @Test("Two callers are held at once, each with its own time and byte; the last one out leaves zeroes")
    func twoCallers() throws {
        let test = try GuardedGuest(hold: .seconds(2), vcpus: 2)
        let first = test.guest.call(4, 6, thread: 0, vcpu: 0)
        let second = test.guest.call(5, 6, thread: 1, vcpu: 1)
        try test.enter(first, vcpu: 0)
        test.pass(.seconds(1))
        try test.enter(second, vcpu: 1)
        #expect(
            test.isInHandler(0) && test.isInHandler(1) && test.machine.registers[0].rip != test.machine.registers[1].rip
        )
        test.pass(.seconds(1))
        _ = try test.tick()
        #expect(test.waitByte(0) == 0 && test.waitByte(1) == 1)
        try test.enter(first, vcpu: 0)
        #expect(test.detour.isHandlerPresent && test.isInHandler(1))
        test.pass(.seconds(1))
        _ = try test.tick()
        try test.enter(second, vcpu: 1)
        #expect(!test.detour.isHandlerPresent && test.powerGuard.heldCallers == 0)
        #expect(
            test.events.dropFirst(2) == ["held 1", "released 1 hold-over", "held 2", "released 2 hold-over"])
        #expect(test.powerGuard.counts.entries == 2 && test.machine.violations == [])
    }

    @Test("A user's call that only leads to a request is not held: its kernel-mode call is")
    func userCall() throws {
        let test = try GuardedGuest(hold: .seconds(1))
        try test.enter(test.guest.call(4, 6, from: .user))
        #expect(!test.isInHandler())
        try test.enter(test.guest.call(4, 6, from: .kernel, depth: 0x100))
        #expect(test.isInHandler())
    }

    @Test("A held caller whose first instruction then faults is neither held nor requested again")
    func faultAfterHold() throws {
        let (test, comesBack) = try Self.held(.seconds(1))
        test.pass(.seconds(1))
        _ = try test.tick()
        test.machine.onStep = { $0.rip = test.guest.kernel.address("KiTrap14") }
        try comesBack()
        test.machine.onStep = { $0.rip &+= 5 }
        try comesBack()
        #expect(test.events == ["requested 1 shutdown kernel", "held 1", "released 1 hold-over"])
        #expect(!test.isInHandler() && test.powerGuard.counts.entries == 1)
    }
}
