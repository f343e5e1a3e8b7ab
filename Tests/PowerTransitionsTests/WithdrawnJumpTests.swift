import PowerTransitions
import TestSupport
import Testing
import X86

@Suite("When the guard puts the jump back") struct WithdrawnJumpTests {
    private static func guarded() throws -> GuardedGuest { try GuardedGuest(options: .init(), jump: true) }

    private static func isJumpThere(_ test: GuardedGuest) throws -> Bool {
        let kernel = try test.guest.locateKernel()
        return try kernel.memory.load(UInt8.self, at: test.guest.entry) == 0xe9
    }

    /// A call that has reached the place where callers are stopped now.
    private static func call(_ test: GuardedGuest, thread: Int = 0) -> Registers {
        var call = test.guest.call(3, 5, thread: thread)
        call.rip = test.detour.stopAddress.rawValue
        return call
    }

    @Test("A time-out tells nothing of the outcome: the jump stays out until its thread is known to be back")
    func unknown() throws {
        let test = try Self.guarded()
        #expect(try Self.isJumpThere(test))
        // All registers but the entry's are in use for returns.
        for thread in 0..<4 {
            let call = Self.call(test, thread: thread)
            try test.enter(call)
        }
        let calls = (0..<4).map { test.guest.call(3, 5, thread: $0) }
        for call in calls.prefix(3) { try test.leave(call, status: 0xc000_02d3) }
        #expect(try !Self.isJumpThere(test) && test.powerGuard.openTransitions == 1)
        test.pass(.seconds(61))
        _ = try test.tick()
        #expect(test.events.last == "outcome 4 hibernate unknown null")
        #expect(try !Self.isJumpThere(test))
        // Another request's end says nothing of the fourth, which may be writing its image still.
        let again = Self.call(test)
        try test.enter(again)
        try test.leave(again, status: 0xc000_02d3)
        #expect(try !Self.isJumpThere(test))
        // Its thread makes another call: it has come back from the first.
        let fourth = Self.call(test, thread: 3)
        try test.enter(fourth)
        try test.leave(fourth, status: 0xc000_02d3)
        #expect(try Self.isJumpThere(test))
        #expect(test.machine.violations == [])
    }

    @Test("A guest that slept and is back has the jump again, one that only said so too")
    func resumed() throws {
        for hasSlept in [true, false] {
            let test = try Self.guarded()
            let call = Self.call(test)
            try test.enter(call)
            if hasSlept {
                test.powerGuard.handle(.suspended)
                test.powerGuard.handle(.wokeUp)
            }
            #expect(try !Self.isJumpThere(test))
            try test.leave(call, status: 0)
            #expect(test.events.last == "outcome 1 hibernate \(hasSlept ? "resumed" : "returned") 0x0")
            #expect(try Self.isJumpThere(test))
        }
    }
}
