import PowerTransitions
import Testing

@Suite("Holding callers until they are released") struct HoldPolicyTests {
    static func held(limit: Duration) throws -> (GuardedGuest, () throws -> Void) {
        let test = try GuardedGuest(options: PowerGuardOptions(holdUntilReleasedWithin: limit))
        let call = test.guest.call(4, 6)
        try test.enter(call)
        return (test, { try test.enter(call) })
    }

    @Test("A caller waits until its request is released, and the reason is the releaser's")
    func released() throws {
        let (test, comesBack) = try Self.held(limit: .seconds(60))
        #expect(test.powerGuard.waitingRequests == [RequestID(1)])
        test.pass(.seconds(59))
        _ = try test.tick()
        #expect(test.waitByte() == 1, "Vigil's deadline for plain holds does not count")
        try test.powerGuard.release(RequestID(1), because: .commandEnded)
        #expect(test.waitByte() == 0 && test.powerGuard.waitingRequests.isEmpty && test.powerGuard.heldCallers == 1)
        try comesBack()
        #expect(test.events.dropFirst() == ["held 1", "released 1 command-ended"])
        #expect(test.machine.violations == [])
    }

    @Test("The limit ends a hold, and a release that comes later does not change the reason")
    func limit() throws {
        let (test, comesBack) = try Self.held(limit: .seconds(60))
        test.pass(.seconds(60) - .nanoseconds(1))
        _ = try test.tick()
        #expect(test.waitByte() == 1)
        test.pass(.nanoseconds(1))
        _ = try test.tick()
        #expect(test.waitByte() == 0 && test.powerGuard.waitingRequests.isEmpty)
        try test.powerGuard.release(RequestID(1), because: .commandFailed)
        try comesBack()
        #expect(test.events.last == "released 1 hold-limit")
    }

    @Test("When Vigil leaves, that is the reason, whatever ends afterwards")
    func leaving() throws {
        let (test, comesBack) = try Self.held(limit: .seconds(60))
        try test.powerGuard.releaseAll()
        try test.powerGuard.release(RequestID(1), because: .commandFailed)
        try comesBack()
        #expect(test.events.last == "released 1 leaving")
    }

    @Test("Releasing one of two callers leaves the other waiting; releasing a stranger does nothing")
    func oneOfTwo() throws {
        let test = try GuardedGuest(options: PowerGuardOptions(holdUntilReleasedWithin: .seconds(60)), vcpus: 2)
        try test.enter(test.guest.call(4, 6, thread: 0, vcpu: 0), vcpu: 0)
        try test.enter(test.guest.call(5, 6, thread: 1, vcpu: 1), vcpu: 1)
        try test.powerGuard.release(RequestID(3), because: .commandEnded)
        #expect(test.waitByte(0) == 1 && test.waitByte(1) == 1)
        try test.powerGuard.release(RequestID(2), because: .commandEnded)
        #expect(test.waitByte(0) == 1 && test.waitByte(1) == 0)
        #expect(test.powerGuard.waitingRequests == [RequestID(1)])
    }

    @Test("A caller that cannot be held is no request that waits")
    func cannotWait() throws {
        let test = try GuardedGuest(options: PowerGuardOptions(holdUntilReleasedWithin: .seconds(60)))
        var call = test.guest.call(4, 6)
        call.rflags &= ~0x200
        try test.enter(call)
        #expect(test.events.last == "not held 1" && test.powerGuard.waitingRequests.isEmpty)
    }
}
