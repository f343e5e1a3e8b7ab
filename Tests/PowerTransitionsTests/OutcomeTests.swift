import HypervisorInterface
import PowerTransitions
import TestSupport
import Testing
import WindowsGuest

@Suite("Outcomes") struct OutcomeTests {
    static func requested(_ action: UInt32, _ state: UInt32) throws -> (GuardedGuest, () throws -> Void) {
        let test = try GuardedGuest()
        let call = test.guest.call(action, state)
        try test.enter(call)
        return (test, { try test.leave(call, status: 0) })
    }

    @Test("A driver's refusal is the outcome, with its status")
    func refused() throws {
        let test = try GuardedGuest()
        let call = test.guest.call(2, 4)
        try test.enter(call)
        try test.leave(call, status: 0xc000_0009)
        #expect(test.events == ["requested 1 sleep kernel", "outcome 1 sleep refused 0xc0000009"])
        #expect(test.powerGuard.openTransitions == 0)
    }

    @Test(
        "The guest's reset is the outcome of a reboot, its power-off of a shutdown",
        arguments: [
            (5, 6, HostEvent.reset(byGuest: true), "outcome 1 reboot reset null"),
            (4, 6, .poweredOff(byGuest: true), "outcome 1 shutdown powered-off null"),
            (6, 4, .poweredOff(byGuest: true), "outcome 1 shutdown powered-off null"),
            (3, 5, .poweredOff(byGuest: true), "outcome 1 hibernate hibernated null"),
            (4, 5, .poweredOff(byGuest: true), "outcome 1 hibernate hibernated null"),
        ] as [(UInt32, UInt32, HostEvent, String)])
    func ended(action: UInt32, state: UInt32, event: HostEvent, outcome: String) throws {
        let (test, _) = try Self.requested(action, state)
        test.powerGuard.handle(event)
        #expect(test.events.dropFirst() == [outcome])
        #expect(test.powerGuard.openTransitions == 0)
    }

    @Test("Sleep that comes back is resumed, and its host events are announced ones")
    func resumed() throws {
        let (test, comesBack) = try Self.requested(2, 4)
        test.powerGuard.handle(.suspended)
        test.powerGuard.handle(.wokeUp)
        try comesBack()
        #expect(test.events == ["requested 1 sleep kernel", "outcome 1 sleep resumed 0x0"])
        #expect(test.machine.violations == [])
    }

    @Test("A success without a host event is a return, not a resumption")
    func returned() throws {
        let (test, comesBack) = try Self.requested(2, 4)
        try comesBack()
        #expect(test.events.last == "outcome 1 sleep returned 0x0")
    }

    @Test(
        "Host events that no request foretold are unannounced",
        arguments: [
            HostEvent.suspended, .wokeUp, .suspendedToDisk, .reset(byGuest: true), .reset(byGuest: false),
            .poweredOff(byGuest: true), .poweredOff(byGuest: false), .guestPanicked,
        ])
    func unannounced(event: HostEvent) throws {
        let test = try GuardedGuest()
        test.powerGuard.handle(event)
        #expect(test.events == ["unannounced \(event)"])
    }

    @Test("What the operator does to the machine is no power event")
    func operatorEvents() throws {
        let test = try GuardedGuest()
        for event in [HostEvent.powerButtonPressed, .stoppedByOperator, .startedByOperator] {
            test.powerGuard.handle(event)
        }
        #expect(test.events == [])
    }

    @Test("A host that resets the machine is unannounced, and ends what was requested")
    func hostReset() throws {
        let (test, _) = try Self.requested(5, 6)
        test.powerGuard.handle(.reset(byGuest: false))
        #expect(test.events.dropFirst() == ["unannounced reset(byGuest: false)", "outcome 1 reboot reset null"])
        #expect(test.powerGuard.openTransitions == 0)
    }

    @Test("A guest that powers off when it asked for a reboot did not announce that")
    func otherEnd() throws {
        let (test, _) = try Self.requested(5, 6)
        test.powerGuard.handle(.poweredOff(byGuest: true))
        #expect(
            test.events.dropFirst() == ["unannounced poweredOff(byGuest: true)", "outcome 1 reboot powered-off null"])
    }

    @Test("A machine that ends without a word has done what was requested, if that was to end")
    func endedSilently() throws {
        let (test, _) = try Self.requested(4, 6)
        #expect(test.powerGuard.machineEnded())
        #expect(!test.powerGuard.machineEnded())
        #expect(test.events.dropFirst() == ["outcome 1 shutdown powered-off null"])
        let (rebooting, _) = try Self.requested(5, 6)
        #expect(!rebooting.powerGuard.machineEnded())
        #expect(rebooting.events.count == 1 && rebooting.powerGuard.openTransitions == 1)
    }

    @Test("Two requests under way both end with the machine, the announced one as what it asked for")
    func twoRequests() throws {
        let test = try GuardedGuest()
        try test.enter(test.guest.call(2, 4, thread: 0))
        try test.enter(test.guest.call(4, 6, thread: 1))
        test.powerGuard.handle(.poweredOff(byGuest: true))
        #expect(
            test.events.dropFirst(2) == ["outcome 1 sleep powered-off null", "outcome 2 shutdown powered-off null"])
    }

    @Test("Memory went to disk for all requests under way, whichever of them announced that")
    func twoRequestsAndDisk() throws {
        let test = try GuardedGuest()
        try test.enter(test.guest.call(3, 5, thread: 0))
        try test.enter(test.guest.call(4, 6, thread: 1))
        test.powerGuard.handle(.suspendedToDisk)
        test.powerGuard.handle(.poweredOff(byGuest: true))
        #expect(
            test.events.dropFirst(2) == ["outcome 1 hibernate hibernated null", "outcome 2 shutdown hibernated null"])
    }

    @Test("The machine's own power-off without memory on disk is no hibernation for who asked for a shutdown first")
    func mixedRequests() throws {
        let test = try GuardedGuest()
        try test.enter(test.guest.call(3, 5, thread: 0))
        try test.enter(test.guest.call(5, 6, thread: 1))
        test.powerGuard.handle(.reset(byGuest: true))
        #expect(test.events.dropFirst(2) == ["outcome 1 hibernate reset null", "outcome 2 reboot reset null"])
    }
}
