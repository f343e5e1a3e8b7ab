import HypervisorInterface
import PowerTransitions
import TestSupport
import Testing
import WindowsGuest

@Suite("Watching returns") struct ReturnWatchTests {
    @Test("A stack walker's read of the slot is no return")
    func stackWalker() throws {
        let test = try GuardedGuest()
        let call = test.guest.call(5, 6)
        try test.enter(call)
        var walker = test.guest.returned(from: call, status: 0)
        walker.rip = 0xffff_f806_4a21_9999
        try test.access(walker)
        var elsewhere = test.guest.returned(from: call, status: 0)
        elsewhere.rsp += 8
        try test.access(elsewhere)
        #expect(test.events == ["requested 1 reboot kernel"] && test.powerGuard.counts.returns == 0)
        #expect(test.machine.sites.contains(test.guest.watch(of: call)))
        try test.leave(call, status: 0xc000_0001)
        #expect(test.events.last == "outcome 1 reboot refused 0xc0000001" && test.powerGuard.counts.returns == 1)
    }

    @Test("Three calls are watched at once; a fourth is not, and the host's event is its outcome, without a status")
    func fourCalls() throws {
        let test = try GuardedGuest()
        let calls = (0..<4).map { test.guest.call(5, 6, thread: $0) }
        for index in 0..<4 {
            _ = test.guest.call(5, 6, thread: index)
            try test.enter(calls[index])
        }
        #expect(test.powerGuard.counts.entries == 4 && test.powerGuard.counts.unwatched == 1)
        #expect(test.machine.sites.count == 4 && test.machine.mostSites == 4)
        #expect(!test.machine.sites.contains(test.guest.watch(of: calls[3])))
        for call in calls.prefix(3) { try test.leave(call, status: 0xc000_0001) }
        #expect(test.powerGuard.openTransitions == 1)
        test.powerGuard.handle(.reset(byGuest: true))
        #expect(test.events.last == "outcome 4 reboot reset null")
        #expect(test.machine.violations == [])
    }

    @Test("A register that a return has freed watches the next call")
    func freedRegister() throws {
        let test = try GuardedGuest()
        let calls = (0..<3).map { test.guest.call(5, 6, thread: $0) }
        for index in 0..<3 {
            _ = test.guest.call(5, 6, thread: index)
            try test.enter(calls[index])
        }
        try test.leave(calls[1], status: 0)
        let next = test.guest.call(5, 6, thread: 4)
        try test.enter(next)
        #expect(test.powerGuard.counts.unwatched == 0 && test.machine.sites.contains(test.guest.watch(of: next)))
    }

    @Test("A return's access is settled before its watch is removed")
    func settled() throws {
        let test = try GuardedGuest()
        let call = test.guest.call(5, 6)
        try test.enter(call)
        test.machine.clearLog()
        try test.leave(call, status: 0xc000_0001)
        let watch = test.guest.watch(of: call)
        #expect(test.machine.actions.prefix(2) == [.settled(VCPU(0)), .removed(watch)])
        // Whoever settles it may have to step: the guardian knows of the stop before that.
        #expect(test.machine.announcements.prefix(2) == [.step(VCPU(0)), .remove(watch)])
    }

    @Test("An outcome that nothing watches is given up after a minute, and not before")
    func givenUp() throws {
        let test = try GuardedGuest()
        for index in 0..<4 { try test.enter(test.guest.call(5, 6, thread: index)) }
        #expect(try test.tick() == .seconds(60))
        test.pass(.seconds(60) - .nanoseconds(1))
        #expect(try test.tick() == .nanoseconds(1))
        #expect(test.events.count == 4)
        test.pass(.nanoseconds(1))
        #expect(try test.tick() == nil)
        #expect(test.events.dropFirst(4) == ["outcome 4 reboot unknown null"])
        #expect(test.powerGuard.openTransitions == 3)
    }

    @Test("A thread that calls from higher up its stack has left its earlier call, whose register is free again")
    func reusedThread() throws {
        let test = try GuardedGuest()
        let lost = test.guest.call(5, 6, from: .user, depth: 0x100)
        try test.enter(lost)
        let next = test.guest.call(5, 6, from: .user, depth: 0x80)
        try test.enter(next)
        #expect(test.events == ["ignored user null"])
        #expect(test.machine.sites == [test.guest.entrySite, test.guest.watch(of: next)])
        #expect(test.powerGuard.counts.entries == 2 && test.powerGuard.counts.returns == 0)
    }

    @Test("A thread that calls from deeper down its stack is still in its earlier call")
    func nestedThread() throws {
        let test = try GuardedGuest()
        let outer = test.guest.call(5, 6, from: .user, depth: 0x80)
        try test.enter(outer)
        let inner = test.guest.call(5, 6, from: .user, depth: 0x100)
        try test.enter(inner)
        #expect(test.events == [])
        #expect(test.machine.sites == [test.guest.entrySite, test.guest.watch(of: outer), test.guest.watch(of: inner)])
    }

    @Test("A request whose thread has left it unseen gets an outcome in the end: unknown")
    func lostRequest() throws {
        let test = try GuardedGuest()
        try test.enter(test.guest.call(5, 6, depth: 0x100))
        let next = test.guest.call(4, 6, depth: 0x80)
        try test.enter(next)
        try test.leave(next, status: 0xc000_0001)
        test.pass(.seconds(61))
        _ = try test.tick()
        #expect(test.events.contains("outcome 1 reboot unknown null"))
        #expect(test.powerGuard.openTransitions == 0)
    }

    @Test("Disarming leaves no breakpoint, and a reset nothing at all")
    func disarmed() throws {
        let test = try GuardedGuest(hold: .seconds(1))
        try test.enter(test.guest.call(5, 6))
        #expect(test.machine.sites.count == 2 && test.powerGuard.heldCallers == 1)
        try test.effects.withPaused { () throws(HypervisorError) in
            try? test.powerGuard.forgetEverything()
        }
        #expect(test.machine.sites.isEmpty && test.powerGuard.heldCallers == 0 && !test.detour.isHandlerPresent)
        // Nothing is written into the memory of whatever comes up.
        test.machine.clearLog()
        #expect(try test.tick() == nil)
        #expect(test.machine.log == [])
        #expect(test.machine.violations == [])
    }
}
