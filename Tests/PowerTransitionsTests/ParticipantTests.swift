import Detours
import GuestMemory
import HypervisorInterface
import PowerTransitions
import TestSupport
import Testing
import WindowsGuest
import X86

/// Something that has to leave the guest, as a test says.
final class ScriptedParticipant: TransitionParticipant {
    static let function = GuestVirtualAddress(0xffff_f806_4a21_4000)

    /// What was asked of it, in order.
    private(set) var log: [String] = []
    /// So many calls have to come back until it is gone; nil for something that no call brings away.
    var neededCalls: Int? = 2
    /// The next calls are not to be made yet: whoever asks is to wait.
    var isBusy = false
    var waitsUntil = Duration.seconds(5)
    private(set) var isOutstanding = false
    private(set) var returned: [UInt64] = []
    private var left = 0
    private var isCalling = false

    func clear() { log = [] }

    func begins(_ id: RequestID, _ transition: Transition) throws(DetourError) {
        log.append("begins \(id.number) \(transition)")
        // What is gone already does not go again.
        guard !isOutstanding, !log.contains("givesUp") else { return }
        left = neededCalls ?? 1
        isOutstanding = left > 0
    }

    func nextCall() throws(DetourError) -> GuestCall? {
        guard isOutstanding, !isBusy, !isCalling, neededCalls != nil else { return nil }
        isCalling = true
        log.append("call")
        return GuestCall(Self.function, [.value(UInt64(left))])
    }

    func sent(slot: Int?) {
        log.append(slot.map { "sent \($0)" } ?? "not sent")
        if slot == nil { isCalling = false }
    }

    func returned(slot: Int, _ registers: Registers) throws(DetourError) {
        log.append("returned \(slot)")
        returned.append(registers.rax)
        isCalling = false
        left -= 1
        if left == 0 { isOutstanding = false }
    }

    func givesUp() throws(DetourError) {
        log.append("givesUp")
        isOutstanding = false
    }

    func lets(_ id: RequestID) throws(DetourError) { log.append("lets \(id.number)") }

    func ends(_ result: TransitionResult) throws(DetourError) { log.append("ends \(result.rawValue)") }
}

@Suite("What has to leave the guest before a transition") struct ParticipantTests {
    private static func test(
        hold: Duration? = nil, vcpus: Int = 1, calls: Int? = 2
    ) throws -> (GuardedGuest, ScriptedParticipant) {
        let test = try GuardedGuest(hold: hold, waiting: .delay, vcpus: vcpus)
        let participant = ScriptedParticipant()
        participant.neededCalls = calls
        test.powerGuard.participant = participant
        return (test, participant)
    }

    /// A caller's registers when it is back from a call.
    private static func back(_ call: Registers, rax: UInt64 = 0) -> Registers {
        var back = call
        back.rsp -= 0x28
        (back.rcx, back.rdx, back.r8, back.r9, back.rax) = (1, 2, 3, 4, rax)
        return back
    }

    private static func isCalling(_ test: GuardedGuest, _ vcpu: Int = 0) -> Bool {
        test.machine.registers[vcpu].rip == ScriptedParticipant.function.rawValue
    }

    private static func isWaiting(_ test: GuardedGuest, _ vcpu: Int = 0) -> Bool {
        test.machine.registers[vcpu].rip == GuardedGuest.delayFunction.rawValue
    }

    private static func hasEntered(_ test: GuardedGuest, _ call: Registers, _ vcpu: Int = 0) -> Bool {
        var entered = call
        entered.rip += 4
        return test.machine.registers[vcpu] == entered
    }

    private static func interval(_ test: GuardedGuest, _ call: Registers) throws -> Int64 {
        Int64(bitPattern: try test.guest.locateKernel().memory.load(UInt64.self, at: GuestVirtualAddress(call.rsp - 8)))
    }

    @Test("The caller makes the calls, waits a millisecond between, and goes when nothing is there, not before")
    func calls() throws {
        let (test, participant) = try Self.test()
        let call = test.guest.call(2, 4)
        try test.enter(call)
        #expect(participant.log == ["begins 1 sleep", "call", "sent 0"] && Self.isCalling(test))
        #expect(test.machine.registers[0].rcx == 2)
        test.pass(.milliseconds(2))
        participant.isBusy = true
        try test.enter(Self.back(call, rax: 0x1234))
        #expect(participant.returned == [0x1234])
        #expect(try Self.isWaiting(test) && Self.interval(test, call) == -10_000)
        for _ in 0..<5 {
            test.pass(.milliseconds(1))
            _ = try test.tick()
            try test.enter(Self.back(call))
            #expect(Self.isWaiting(test) && test.powerGuard.heldCallers == 1)
        }
        participant.isBusy = false
        test.pass(.milliseconds(1))
        try test.enter(Self.back(call))
        #expect(Self.isCalling(test) && test.machine.registers[0].rcx == 1)
        try test.enter(Self.back(call, rax: 7))
        #expect(Self.hasEntered(test, call) && test.powerGuard.heldCallers == 0)
        #expect(
            participant.log.dropFirst(3) == ["returned 0", "call", "sent 0", "returned 0", "lets 1"])
        #expect(test.events.dropFirst() == ["held 1", "released 1 withdrawn"])
        #expect(participant.returned == [0x1234, 7] && test.powerGuard.counts.entries == 1)
        try test.leave(call, status: 0xc000_0001)
        #expect(participant.log.last == "ends refused")
        #expect(test.machine.violations == [])
    }

    @Test("With nothing to leave nobody is held, and both ends of the request are told all the same")
    func nothing() throws {
        let (test, participant) = try Self.test(calls: 0)
        let call = test.guest.call(2, 4)
        try test.enter(call)
        #expect(Self.hasEntered(test, call) && test.events == ["requested 1 sleep kernel"])
        try test.leave(call, status: 0)
        #expect(participant.log == ["begins 1 sleep", "lets 1", "ends returned"])
    }

    @Test("After the deadline it gives up, and the caller goes, with the reason", arguments: [true, false])
    func deadline(isCalling: Bool) throws {
        let (test, participant) = try Self.test()
        participant.isBusy = !isCalling
        let call = test.guest.call(4, 6)
        try test.enter(call)
        test.pass(.seconds(5) - .nanoseconds(1))
        if !isCalling {
            try test.enter(Self.back(call))
            #expect(Self.isWaiting(test))
        }
        test.pass(.nanoseconds(1))
        _ = try test.tick()
        #expect(!participant.log.contains("givesUp") && test.powerGuard.heldCallers == 1)
        try test.enter(Self.back(call))
        #expect(participant.log.suffix(2) == ["givesUp", "lets 1"] && Self.hasEntered(test, call))
        #expect(test.events.last == "released 1 deadline")
    }

    @Test("A caller that cannot wait goes in after it was given up", arguments: [true, false])
    func cannotWait(interruptsOff: Bool) throws {
        let (test, participant) = try Self.test()
        var call = test.guest.call(4, 6)
        if interruptsOff { call.rflags &= ~0x200 } else { call.control.cr8 = 2 }
        try test.enter(call)
        #expect(
            participant.log == ["begins 1 shutdown", "call", "not sent", "givesUp", "lets 1"]
                && Self.hasEntered(test, call))
        #expect(test.events.last == "not held 1")
    }

    @Test("A caller that cannot be sent off a second time goes in after it was given up")
    func cannotBeSentAgain() throws {
        let (test, participant) = try Self.test()
        let call = test.guest.call(4, 6)
        try test.enter(call)
        // Its stack has become something that nothing can be pushed to.
        test.guest.kernel.write(UInt64(0), at: call.rsp - 0x30)
        let page = call.rsp & ~0xfff
        let entry = test.guest.kernel.entry(of: page)
        test.guest.kernel.setEntry(of: page, to: entry & ~2)
        try test.enter(Self.back(call))
        #expect(participant.log.suffix(4) == ["call", "not sent", "givesUp", "lets 1"])
        #expect(Self.hasEntered(test, call) && test.powerGuard.heldCallers == 0)
    }

    @Test("Two callers at once: both wait, whoever comes makes the calls, and both go")
    func twoCallers() throws {
        let (test, participant) = try Self.test(vcpus: 2)
        let first = test.guest.call(4, 6, thread: 0, vcpu: 0)
        let second = test.guest.call(2, 4, thread: 1, vcpu: 1)
        try test.enter(first, vcpu: 0)
        try test.enter(second, vcpu: 1)
        #expect(Self.isCalling(test, 0) && Self.isWaiting(test, 1) && test.powerGuard.heldCallers == 2)
        try test.enter(Self.back(second), vcpu: 1)
        #expect(Self.isWaiting(test, 1))
        participant.isBusy = true
        try test.enter(Self.back(first), vcpu: 0)
        #expect(Self.isWaiting(test, 0))
        participant.isBusy = false
        try test.enter(Self.back(second), vcpu: 1)
        #expect(Self.isCalling(test, 1))
        try test.enter(Self.back(first), vcpu: 0)
        #expect(Self.isWaiting(test, 0))
        try test.enter(Self.back(second), vcpu: 1)
        #expect(Self.hasEntered(test, second, 1) && test.powerGuard.heldCallers == 1)
        try test.enter(Self.back(first), vcpu: 0)
        #expect(Self.hasEntered(test, first, 0) && test.powerGuard.heldCallers == 0)
        #expect(participant.log.filter { $0.hasPrefix("begins") } == ["begins 1 shutdown", "begins 2 sleep"])
        #expect(test.events.suffix(4) == ["held 2", "released 2 withdrawn", "held 1", "released 1 withdrawn"])
        // It is over when both are.
        try test.leave(first, status: 0xc000_0001)
        #expect(!participant.log.contains { $0.hasPrefix("ends") })
        try test.leave(second, status: 0)
        #expect(participant.log.filter { $0.hasPrefix("ends") } == ["ends returned"])
    }

    @Test("A second caller that cannot wait ends the waiting of the first")
    func secondCannotWait() throws {
        let (test, participant) = try Self.test(vcpus: 2)
        let first = test.guest.call(4, 6, thread: 0, vcpu: 0)
        var second = test.guest.call(2, 4, thread: 1, vcpu: 1)
        second.rflags &= ~0x200
        try test.enter(first, vcpu: 0)
        try test.enter(second, vcpu: 1)
        #expect(participant.log.suffix(2) == ["givesUp", "lets 2"] && Self.hasEntered(test, second, 1))
        try test.enter(Self.back(first), vcpu: 0)
        #expect(participant.log.last == "lets 1" && Self.hasEntered(test, first, 0))
        #expect(participant.log.filter { $0 == "givesUp" }.count == 1)
    }

    @Test("The end is told once: resumed, returned, refused")
    func ends() throws {
        for (status, suspends, result) in [
            (0 as UInt32, true, "resumed"), (0, false, "returned"), (0xc000_0022, true, "refused"),
        ] {
            let (test, participant) = try Self.test(calls: 0)
            let call = test.guest.call(2, 4)
            try test.enter(call)
            if suspends {
                test.powerGuard.handle(.suspended)
                test.powerGuard.handle(.wokeUp)
            }
            try test.leave(call, status: status)
            test.pass(.seconds(100))
            _ = try test.tick()
            #expect(participant.log.filter { $0.hasPrefix("ends") } == ["ends \(result)"])
        }
    }

    @Test("A request whose end nothing tells ends by its deadline, once")
    func unknownEnd() throws {
        let (test, participant) = try Self.test(calls: 0)
        // No register is left to watch the return.
        for index in 1...3 {
            try test.effects.withPaused { () throws(HypervisorError) in
                _ = try test.detour.debugRegisters.acquire(
                    .returnWatch(stackSlot: UInt64(index)), .access(GuestVirtualAddress(UInt64(index) * 8), length: 8))
            }
        }
        try test.enter(test.guest.call(2, 4))
        #expect(try test.tick() == .seconds(60))
        test.pass(.seconds(60))
        _ = try test.tick()
        _ = try test.tick()
        #expect(participant.log == ["begins 1 sleep", "lets 1", "ends unknown"])
        #expect(test.events.last == "outcome 1 sleep unknown null")
    }

    @Test("A guest that goes down has no end to be told of")
    func goesDown() throws {
        let (test, participant) = try Self.test(calls: 0)
        try test.enter(test.guest.call(4, 6))
        test.powerGuard.handle(.poweredOff(byGuest: true))
        _ = try test.tick()
        #expect(participant.log == ["begins 1 shutdown", "lets 1"])
    }

    @Test("Calls that lead to nothing, and a user's that leads to another, take nothing out")
    func noRequests() throws {
        let (test, participant) = try Self.test()
        try test.enter(test.guest.call(9, 6))
        try test.enter(test.guest.call(4, 0, thread: 1))
        let user = test.guest.call(4, 6, from: .user, thread: 2)
        try test.enter(user)
        #expect(participant.log == [] && test.powerGuard.heldCallers == 0)
        let kernel = test.guest.call(4, 6, from: .kernel, thread: 2, depth: 0x100)
        try test.enter(kernel)
        #expect(participant.log.first == "begins 1 shutdown" && Self.isCalling(test))
    }

    @Test("A hold that lasts longer goes on when everything has left; a shorter one does not end the wait")
    func withHold() throws {
        let (test, brief) = try Self.test(hold: .seconds(2), calls: 1)
        let call = test.guest.call(4, 6)
        try test.enter(call)
        #expect(Self.isCalling(test))
        test.pass(.milliseconds(500))
        try test.enter(Self.back(call))
        #expect(!brief.isOutstanding)
        #expect(try Self.isWaiting(test) && Self.interval(test, call) == -2_500_000)
        test.pass(.milliseconds(1499))
        try test.enter(Self.back(call))
        #expect(Self.hasEntered(test, call) && test.events.last == "released 1 hold-over")

        let (other, participant) = try Self.test(hold: .milliseconds(100), calls: 1)
        participant.isBusy = true
        let later = other.guest.call(4, 6)
        try other.enter(later)
        other.pass(.milliseconds(200))
        _ = try other.tick()
        try other.enter(Self.back(later))
        #expect(try Self.isWaiting(other) && Self.interval(other, later) == -10_000)
        participant.isBusy = false
        try other.enter(Self.back(later))
        try other.enter(Self.back(later))
        #expect(Self.hasEntered(other, later) && other.events.last == "released 1 hold-over")
    }

    @Test("Who is told to go still waits for what has to leave, and later callers wait for nothing else")
    func leaving() throws {
        let (test, participant) = try Self.test(hold: .seconds(9), vcpus: 2, calls: 2)
        let call = test.guest.call(4, 6)
        try test.enter(call)
        try test.powerGuard.releaseAll()
        try test.enter(Self.back(call))
        #expect(Self.isCalling(test))
        let later = test.guest.call(2, 4, thread: 1, vcpu: 1)
        try test.enter(later, vcpu: 1)
        #expect(Self.isWaiting(test, 1))
        _ = test.guest.call(4, 6)
        try test.enter(Self.back(call))
        #expect(Self.hasEntered(test, call) && !participant.isOutstanding)
        #expect(test.events.last == "released 1 leaving")
        _ = test.guest.call(2, 4, thread: 1, vcpu: 1)
        try test.enter(Self.back(later), vcpu: 1)
        #expect(Self.hasEntered(test, later, 1) && test.events.last == "released 2 leaving")
    }

    @Test("While somebody waits for what has to leave, nothing but the sign of life is due")
    func due() throws {
        let (test, stubborn) = try Self.test(calls: nil)
        try test.enter(test.guest.call(4, 6))
        #expect(Self.isWaiting(test))
        #expect(try test.tick() == .milliseconds(250))
        test.pass(.seconds(1))
        #expect(try test.tick() == .milliseconds(250) && test.powerGuard.heldCallers == 1)
        #expect(stubborn.isOutstanding)
    }

    // MARK: Refusals

    /// One request that is refused.
    private static func refuse(_ test: GuardedGuest) throws {
        let call = test.guest.call(2, 4)
        try test.enter(call)
        if test.powerGuard.heldCallers > 0 {
            test.pass(.seconds(3))
            try test.enter(back(call))
        }
        try test.leave(call, status: 0xc000_0001)
    }

    @Test("Refused requests in a row are reported from the third on, and answered later by growing steps")
    func refusals() throws {
        let test = try GuardedGuest(waiting: .delay)
        for _ in 0..<2 { try Self.refuse(test) }
        #expect(!test.events.contains { $0.hasPrefix("refused") || $0.hasPrefix("held") })
        try Self.refuse(test)
        #expect(test.events.last == "refused 3 times" && !test.events.contains("held 3"))
        for step in 1...30 {
            let call = test.guest.call(2, 4)
            try test.enter(call)
            #expect(Self.isWaiting(test))
            // 100 ms more each time, up to two seconds, in delays of 250 ms at most.
            let delay = Duration.milliseconds(100 * min(step, 20))
            test.pass(delay - .milliseconds(2))
            try test.enter(Self.back(call))
            #expect(test.powerGuard.heldCallers == 1)
            test.pass(.milliseconds(2))
            try test.enter(Self.back(call))
            #expect(test.powerGuard.heldCallers == 0)
            #expect(test.events.last == "released \(step + 3) answered-slowly")
            try test.leave(call, status: 0xc000_0001)
            #expect(test.events.last == "refused \(step + 3) times")
        }
    }

    @Test("Refusals are forgotten after a while, and by one request that is not refused", arguments: [true, false])
    func refusalsForgotten(byTime: Bool) throws {
        let test = try GuardedGuest(waiting: .delay)
        for _ in 0..<3 { try Self.refuse(test) }
        if byTime {
            test.pass(.seconds(10) + .nanoseconds(1))
        } else {
            let call = test.guest.call(2, 4)
            try test.enter(call)
            test.pass(.milliseconds(100))
            try test.enter(Self.back(call))
            try test.leave(call, status: 0)
        }
        for _ in 0..<2 { try Self.refuse(test) }
        #expect(test.events.filter { $0.hasPrefix("refused") }.count == 1)
        try Self.refuse(test)
        #expect(test.events.last == "refused 3 times")
    }

    @Test("A hold that is longer than the slow answer stays what it is; who leaves answers nobody slowly")
    func slowAnswerAndHold() throws {
        let test = try GuardedGuest(hold: .seconds(1), waiting: .delay)
        for _ in 0..<3 { try Self.refuse(test) }
        let call = test.guest.call(2, 4)
        try test.enter(call)
        test.pass(.seconds(1))
        try test.enter(Self.back(call))
        #expect(test.events.last == "released 4 hold-over")
        try test.leave(call, status: 0xc000_0001)
        try test.powerGuard.releaseAll()
        try test.enter(test.guest.call(2, 4))
        #expect(test.powerGuard.heldCallers == 0)
    }

    @Test("An error while a caller is sent off again is the guard's error, and its registers can still be put back")
    func sendingFails() throws {
        let (test, participant) = try Self.test()
        let call = test.guest.call(4, 6)
        try test.enter(call)
        test.machine.failures[.setRegisters] = [.unexpectedAnswer("test")]
        #expect(throws: DetourError.self) { try test.enter(Self.back(call)) }
        #expect(participant.log.last == "call")
        try test.detour.finishInterruptedWork()
        #expect(test.machine.registers[0] == call && test.powerGuard.heldCallers == 0)
    }
}
