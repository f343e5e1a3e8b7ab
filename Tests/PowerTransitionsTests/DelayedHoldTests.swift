import Detours
import GuestMemory
import HypervisorInterface
import PowerTransitions
import TestSupport
import Testing
import WindowsGuest
import X86

@Suite("Holding callers in the guest's own delay function") struct DelayedHoldTests {
    /// A caller on its way, and its registers when a delay is over.
    static func held(_ duration: Duration) throws -> (test: GuardedGuest, call: Registers, back: Registers) {
        let test = try GuardedGuest(hold: duration, waiting: .delay)
        let call = test.guest.call(4, 6)
        try test.enter(call)
        var back = call
        back.rsp -= 0x28
        (back.rcx, back.rdx, back.r8, back.rax) = (1, 2, 3, 0)
        return (test, call, back)
    }

    static func isWaiting(_ test: GuardedGuest) -> Bool {
        test.machine.registers[0].rip == GuardedGuest.delayFunction.rawValue
    }

    @Test("A hold that is longer than a delay is several, the last one as long as what is left")
    func severalDelays() throws {
        let (test, call, back) = try Self.held(.milliseconds(550))
        func interval() throws -> Int64 {
            let memory = try test.guest.locateKernel().memory
            return Int64(bitPattern: try memory.load(UInt64.self, at: GuestVirtualAddress(call.rsp - 8)))
        }
        for expected in [-2_500_000, -2_500_000, -500_000] as [Int64] {
            #expect(try Self.isWaiting(test) && interval() == expected)
            #expect(test.events == ["requested 1 shutdown kernel"])
            test.pass(expected == -500_000 ? .milliseconds(50) : .milliseconds(250))
            try test.enter(back)
        }
        #expect(test.events.dropFirst() == ["held 1", "released 1 hold-over"])
        #expect(test.held[0].stops == 4 && test.powerGuard.counts.entries == 1 && test.powerGuard.heldCallers == 0)
        var entered = call
        entered.rip += 4
        #expect(test.machine.registers[0] == entered)
        #expect(test.effects.counts.codeBytesWritten == 0 && test.effects.counts.dataBytesWritten == 0)
        #expect(test.machine.violations == [])
    }

    @Test("A caller that comes back within a millisecond of its end is not sent off again", arguments: [true, false])
    func nearlyOver(nearly: Bool) throws {
        let (test, _, back) = try Self.held(.milliseconds(50))
        test.pass(.milliseconds(nearly ? 49 : 48))
        try test.enter(back)
        #expect(Self.isWaiting(test) == !nearly)
        #expect(test.events.contains("released 1 hold-over") == nearly)
    }

    @Test("A caller that was told to go is taken back at its next arrival, and nothing is written for that")
    func leaving() throws {
        let (test, call, back) = try Self.held(.seconds(5))
        test.machine.clearLog()
        try test.powerGuard.releaseAll()
        #expect(test.machine.log.isEmpty && test.powerGuard.heldCallers == 1)
        test.pass(.milliseconds(60))
        try test.enter(back)
        #expect(test.events.last == "released 1 leaving" && test.powerGuard.heldCallers == 0)
        #expect(test.machine.registers[0].rcx == call.rcx && test.machine.registers[0].rsp == call.rsp)
    }

    @Test("Another thread with a held caller's stack pointer does not get its registers")
    func imposter() throws {
        let (test, call, back) = try Self.held(.milliseconds(50))
        test.pass(.milliseconds(50))
        // A thread of its own, and the other's stack.
        var imposter = test.guest.call(5, 6, thread: 3)
        test.guest.kernel.write(FakeGuest.returnAddress, at: back.rsp)
        imposter.rsp = back.rsp
        try test.enter(imposter)
        #expect(test.machine.registers[0].rcx & 0xffff_ffff != call.rcx & 0xffff_ffff)
        #expect(test.powerGuard.heldCallers == 2 && test.powerGuard.counts.entries == 2)
        #expect(test.events.last == "requested 2 reboot kernel")
        _ = test.guest.call(4, 6)
        test.guest.kernel.write(FakeGuest.returnAddress, at: call.rsp)
        try test.enter(back)
        #expect(test.events.contains("released 1 hold-over"))
    }

    @Test("A caller whose stack is gone when it is to be sent off again goes on, and the reason says so")
    func cannotWait() throws {
        let (test, _, back) = try Self.held(.seconds(1))
        test.machine.onStep = { $0.rip = 0xffff_f806_4a20_9000 }
        test.guest.kernel.write(UInt64(0), at: back.rsp - 8)
        test.pass(.milliseconds(100))
        try test.enter(back)
        #expect(test.events.contains("released 1 cannot-wait"))
    }
}
