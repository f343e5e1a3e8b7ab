import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

@testable import Agents

@Suite("The agents' deadlines and ends") struct AgentDeadlineTests {
    static let pool = AgentRun.pool
    static let other = AgentRun.pool + 0x4000

    // MARK: Nobody comes

    @Test("No thread comes: it is not deployed, and that is said when the time is over")
    func noThread() throws {
        let run = try AgentRun()
        try run.want()
        #expect(try run.tick() == .seconds(30))
        run.pass(.seconds(30) - .nanoseconds(1))
        #expect(try run.tick() == .nanoseconds(1))
        #expect(run.words.isEmpty)
        run.pass(.nanoseconds(1))
        #expect(try run.tick() == nil)
        #expect(run.words == ["failed one"] && !run.manager.wantsThread)
        try run.tick()
        #expect(run.words == ["failed one"])
    }

    @Test("Each step of the way in has the whole time for a thread to come")
    func steps() throws {
        let run = try AgentRun()
        try run.want()
        run.pass(.seconds(29))
        try run.call(Self.pool.rawValue)
        run.pass(.seconds(29))
        try run.tick()
        try run.call()
        #expect(run.state() == .deployed)
    }

    @Test("No thread comes for a loaded agent that was not started: it is left behind, and nothing leads there")
    func noThreadForStart() throws {
        let run = try AgentRun()
        try run.want()
        try run.call(Self.pool.rawValue)
        run.pass(.seconds(30))
        try run.tick()
        #expect(run.words == ["neutralised one"] && run.state() == .neutralised && !run.manager.isOutstanding)
        #expect(try run.offer() == nil)
    }

    @Test("While a call is under way its own deadline counts, and no earlier time is due")
    func callUnderWay() throws {
        let run = try AgentRun()
        run.manager.deadlines.call = .seconds(60)
        try run.want()
        let allocation = try #require(try run.offer())
        run.pass(.seconds(31))
        #expect(try run.tick() == .seconds(29))
        #expect(run.words.isEmpty)
        try run.back(allocation.slot, Self.pool.rawValue)
        try run.tick()
        #expect(try run.call() == run.startCall)
    }

    // MARK: Calls that do not come back

    @Test("An allocation that does not come back fails; the next agent's goes on; what comes late is freed")
    func lateAllocation() throws {
        let run = try AgentRun(["one", "two"])
        try run.want("one")
        try run.want("two")
        let first = try #require(try run.offer())
        run.pass(.seconds(5) - .nanoseconds(1))
        try run.tick()
        #expect(run.words.isEmpty)
        run.pass(.nanoseconds(1))
        try run.tick()
        #expect(run.words == ["failed one"] && run.manager.wantsThread)
        let second = try #require(try run.offer())
        try run.back(second.slot, Self.other.rawValue)
        try run.call()
        #expect(run.words == ["failed one", "deployed two system-call"])
        try run.back(first.slot, Self.pool.rawValue)
        #expect(
            run.manager.wantsThread
                && run.state("one") == .failed("a call of the guest's did not come back in 5.0 seconds"))
        #expect(try run.call() == run.freeCall)
        #expect(!run.manager.wantsThread && run.words.count == 2)
        #expect(run.notes == ["1 there"] && run.bytes(Self.pool, AgentRun.size).allSatisfy { $0 == 0 })
    }

    @Test("An agent that is deployed meanwhile is none the worse for its late allocation", arguments: [0, 1, 2])
    func lateAllocationOfDeployed(result: Int) throws {
        let run = try AgentRun()
        try run.want()
        let late = try #require(try run.offer())
        run.pass(.seconds(5))
        try run.tick()
        try run.deploy(at: Self.other)
        try run.back(late.slot, [0, Self.pool.rawValue, 0x1230][result])
        #expect(run.state() == .deployed && run.programs[0].leadsTo == Self.other)
        #expect(try run.call() == (result == 1 ? run.freeCall : nil))
        #expect(run.words == ["failed one", "deployed one system-call"] && run.isThere(Self.other))
        // It can still be taken out.
        try run.want("one", false)
        try run.call()
        run.leave(Self.other)
        #expect(try run.call() == run.freeCall(Self.other))
    }

    @Test("What a late allocation got is reported where nobody comes to free it")
    func lateAllocationStays() throws {
        let run = try AgentRun()
        try run.want()
        let late = try #require(try run.offer())
        run.pass(.seconds(5))
        try run.tick()
        try run.back(late.slot, Self.pool.rawValue)
        #expect(try run.tick() == .seconds(30))
        run.pass(.seconds(30))
        try run.tick()
        #expect(run.words == ["failed one", "neutralised one"] && !run.manager.wantsThread)
        #expect(try run.tick() == nil)
    }

    @Test("What a late allocation got is given back once, even if that does not come back either")
    func lateAllocationFreedLate() throws {
        let run = try AgentRun()
        try run.want()
        let late = try #require(try run.offer())
        run.pass(.seconds(5))
        try run.tick()
        try run.back(late.slot, Self.pool.rawValue)
        let free = try #require(try run.offer())
        run.pass(.seconds(5))
        try run.tick()
        #expect(try run.offer() == nil)
        run.pass(.seconds(25))
        try run.tick()
        #expect(try run.tick() == nil)
        #expect(run.words == ["failed one", "neutralised one"])
        try run.back(free.slot)
        #expect(try run.offer() == nil)
    }

    @Test("A wish withdrawn while an old call is still away holds nobody up")
    func cancelledWithOldCall() throws {
        let run = try AgentRun()
        try run.want()
        let late = try #require(try run.offer())
        run.pass(.seconds(5))
        try run.tick()
        try run.want()
        try run.want("one", false)
        #expect(run.state() == .absent && !run.manager.isOutstanding)
        try run.back(late.slot, Self.pool.rawValue)
        #expect(try run.call() == run.freeCall)
    }

    @Test("A start that does not come back is neutralised; nothing is freed under it; late, it is freed")
    func lateStart() throws {
        let run = try AgentRun()
        try run.want()
        try run.call(Self.pool.rawValue)
        let start = try #require(try run.offer())
        run.pass(.seconds(5))
        try run.tick()
        #expect(run.words == ["neutralised one"] && !run.manager.isOutstanding && run.notes == ["0 there", "0 gone"])
        // Its thread, if there is one, is to leave; the memory that its start runs in is not given back by it.
        #expect(run.word(Self.pool, .stopWanted) == 1 && run.word(Self.pool, .mayLeave) == 1)
        #expect(try run.offer() == nil)
        try run.back(start.slot)
        #expect(try run.offer() == nil && run.manager.keepsThread && run.programs[0].leadsTo == nil)
        run.leave()
        #expect(try run.call() == run.freeCall)
        #expect(run.words == ["neutralised one"] && run.state() == .absent)
    }

    @Test("A start that fails late has made no thread: its memory is freed, whatever the agent does meanwhile")
    func lateFailedStart() throws {
        let run = try AgentRun()
        try run.want()
        try run.call(Self.pool.rawValue)
        let start = try #require(try run.offer())
        run.pass(.seconds(5))
        try run.tick()
        try run.deploy(at: Self.other)
        try run.back(start.slot, 0xc000_0001)
        #expect(run.state() == .deployed)
        #expect(try run.call() == run.freeCall)
        #expect(run.state() == .deployed && run.isThere(Self.other) && run.notes.last == "0 there")
    }

    @Test("A signal that comes late says nothing of the agent that is there by then")
    func lateSignal() throws {
        let run = try AgentRun()
        try run.deploy()
        try run.want("one", false)
        let signal = try #require(try run.offer())
        run.pass(.seconds(5))
        try run.tick()
        #expect(run.words.last == "neutralised one" && run.word(Self.pool, .stopWanted) == 1)
        try run.deploy(at: Self.other)
        try run.back(signal.slot)
        run.leave()
        #expect(try run.call() == run.freeCall)
        try run.want("one", false)
        #expect(try run.call()?.function == run.functions.setEvent)
        #expect(run.word(Self.other, .stopWanted) == 1)
        run.leave(Self.other)
        #expect(try run.call() == run.freeCall(Self.other))
    }

    @Test("A free that comes late is no news, and none is made twice", arguments: [true, false])
    func lateFree(isWanted: Bool) throws {
        let run = try AgentRun()
        try run.deploy()
        try run.want("one", false)
        try run.call()
        run.leave()
        let free = try #require(try run.offer())
        run.pass(.seconds(5))
        try run.tick()
        #expect(run.words.last == "neutralised one" && run.state() == .neutralised)
        #expect(try run.offer() == nil)
        if isWanted { try run.deploy(at: Self.other) }
        try run.back(free.slot)
        #expect(try run.offer() == nil)
        #expect(
            run.state() == (isWanted ? .deployed : .absent) && run.words.filter { $0.hasPrefix("neutral") }.count == 1)
    }

    // MARK: Agents that do not leave

    @Test("A thread that does not leave: nothing leads to it after the deadline, and it goes by itself some time")
    func doesNotLeave() throws {
        let run = try AgentRun()
        try run.deploy()
        try run.want("one", false)
        try run.call()
        // Somebody stays in the gate, too.
        run.machine.registers[0].rip = Self.pool.rawValue + UInt64(AgentRun.gate.lowerBound)
        #expect(try run.tick() == .seconds(5))
        run.pass(.seconds(5))
        try run.tick()
        #expect(
            run.events.last
                == .neutralised(
                    agent: "one", base: Self.pool, reason: "somebody was still in it after 5.0 seconds"))
        #expect(run.word(Self.pool, .stopWanted) == 2 && run.word(Self.pool, .mayLeave) == 1)
        #expect(run.programs[0].leadsTo == nil && run.notes == ["0 there", "0 gone"])
        #expect(!run.manager.isOutstanding && run.state() == .neutralised)
        run.leave()
        #expect(try run.offer() == nil && !run.manager.keepsThread)
        #expect(try run.tick() == nil)
    }

    @Test("Nobody comes to tell it: it is told without a call")
    func notTold() throws {
        let run = try AgentRun()
        try run.deploy()
        try run.want("one", false)
        run.pass(.seconds(5))
        try run.tick()
        #expect(run.words.last == "neutralised one" && run.word(Self.pool, .stopWanted) == 2)
    }

    @Test("What cannot be detached is never told that it may leave, until it is detached; then it goes by itself")
    func cannotBeDetached() throws {
        let run = try AgentRun()
        try run.deploy()
        run.programs[0].refusedDetachments = 3
        #expect(throws: AgentError.self) { try run.want("one", false) }
        try run.call()
        run.pass(.seconds(5))
        try run.tick()
        #expect(run.words.last == "neutralised one" && !run.manager.isOutstanding)
        #expect(run.word(Self.pool, .mayLeave) == 0 && run.notes == ["0 there"])
        try run.want()
        #expect(run.state() == .neutralised && !run.manager.wantsThread)
        try run.tick()
        #expect(run.programs[0].leadsTo == nil && run.notes == ["0 there", "0 gone"])
        #expect(run.word(Self.pool, .mayLeave) == 1 && run.word(Self.pool, .stopWanted) == 2)
        #expect(run.words.filter { $0.hasPrefix("neutral") }.count == 1)
        try run.deploy(at: Self.other)
    }

    @Test("Who gives up leaves nothing that is not harmless, whatever was under way", arguments: 0..<6)
    func givesUp(step: Int) throws {
        let run = try AgentRun()
        var away: Int?
        try run.want()
        let calls: [UInt64] = [Self.pool.rawValue, 0, 0, 0]
        for index in 0...min(step, 3) {
            if index == 2 {
                run.set(Self.pool, .stage, 1)
                try run.standing { try run.manager.suspend() }
            }
            if index == 3 { run.leave() }
            away = try #require(try run.offer()).slot
            if index < step { try run.back(away!, calls[index]) }
        }
        if step == 5 { try run.want("one", false) }
        try run.standing {
            try run.manager.suspend()
            try run.manager.giveUp(because: "test")
        }
        #expect(!run.manager.isOutstanding && !run.manager.isBusy && run.programs[0].leadsTo == nil)
        #expect(run.words.filter { $0.hasPrefix("neutral") }.count == ([1, 2, 3].contains(step) ? 1 : 0))
        #expect(try run.offer() == nil)
        guard step < 4, let away else { return }
        try run.back(away, calls[step])
        run.leave()
        // What there was is given back late, once.
        #expect(try run.call() == (step < 3 ? run.freeCall : nil))
        #expect(try run.offer() == nil && !run.manager.isOutstanding)
    }

    // MARK: Vigil leaves

    @Test("Released, agents go by themselves, and are seen to have gone when nothing is there any more")
    func released() throws {
        let run = try AgentRun(["one", "two"])
        try run.deploy("one")
        try run.deploy("two", at: Self.other)
        try run.want("two", false)
        try run.standing { try run.manager.release() }
        #expect(run.programs.allSatisfy { $0.leadsTo == nil } && !run.manager.isOutstanding)
        for base in [Self.pool, Self.other] {
            #expect(run.word(base, .mayLeave) == 1 && run.word(base, .stopWanted) == 2)
        }
        #expect(run.notes.suffix(2) == ["0 gone", "1 gone"])
        #expect(run.manager.lookAtReleased() == 2)
        // On its way out, and somebody still in it.
        run.set(Self.pool, .stage, 2)
        #expect(run.manager.lookAtReleased() == 2)
        run.guest.kernel.write(UInt64(0), at: Self.pool.rawValue)
        run.guest.kernel.setEntry(of: Self.other.rawValue, to: 0)
        #expect(run.manager.lookAtReleased() == 0 && run.manager.lookAtReleased() == 0)
        #expect(run.words.suffix(2) == ["withdrawn one by-itself", "withdrawn two by-itself"])
        #expect(try run.offer() == nil)
    }

    @Test("Released with a call under way, what it is for goes on when its thread is back")
    func releasedDuringCall() throws {
        let run = try AgentRun()
        try run.want()
        try run.call(Self.pool.rawValue)
        let start = try #require(try run.offer())
        try run.standing { try run.manager.release() }
        try run.back(start.slot)
        let signal = try #require(try run.offer())
        try run.standing { try run.manager.release() }
        // Its event is being set: the memory has to stay.
        #expect(run.word(Self.pool, .stopWanted) == 1 && run.manager.lookAtReleased() == 0)
        try run.back(signal.slot)
        run.leave()
        #expect(try run.call() == run.freeCall)
        #expect(run.words == ["withdrawn one system-call"])
    }

    @Test("One that cannot be detached on leaving is said to be there, and the others go")
    func releasedInPart() throws {
        let run = try AgentRun(["one", "two"])
        try run.deploy("one")
        try run.deploy("two", at: Self.other)
        run.programs[0].refusedDetachments = 2
        try run.standing { try run.manager.release() }
        #expect(run.words.last == "neutralised one" && run.word(Self.pool, .mayLeave) == 0)
        #expect(run.word(Self.other, .stopWanted) == 2)
    }

    // MARK: The guest goes

    @Test("A crash zeroes every byte of every agent, and nothing leads to them")
    func zeroed() throws {
        let run = try AgentRun(["one", "two", "three"])
        try run.deploy("one")
        try run.deploy("two", at: Self.other)
        try run.want("three")
        run.guest.kernel.write(UInt64(0x5a5a), at: Self.pool.rawValue + UInt64(AgentRun.size))
        run.programs[0].refusedDetachments = 1
        #expect(throws: AgentError.self) { try run.standing { try run.manager.zeroEverything() } }
        for (base, size) in [(Self.pool, AgentRun.size), (Self.other, AgentRun.size + 0x10)] {
            #expect(run.bytes(base, size).allSatisfy { $0 == 0 })
        }
        #expect(run.bytes(Self.pool + UInt64(AgentRun.size), 2) == [0x5a, 0x5a])
        #expect(run.programs[1].leadsTo == nil && run.notes.suffix(3) == ["0 gone", "1 gone", "2 gone"])
        #expect(run.words.suffix(2) == ["withdrawn one zeroed", "withdrawn two zeroed"])
        #expect(!run.manager.isOutstanding && !run.manager.wantsThread)
        try run.standing { try run.manager.zeroEverything() }
        #expect(run.words.filter { $0.hasSuffix("zeroed") }.count == 2)
    }

    @Test("A crash zeroes nothing that was given back, and may be somebody else's")
    func zeroesOnlyItsOwn() throws {
        let run = try AgentRun(["one", "two"], gate: nil)
        try run.deploy("one")
        try run.deploy("two", at: Self.other)
        try run.want("two", false)
        run.pass(.seconds(5))
        try run.tick()
        #expect(run.words.last == "neutralised two")
        // Both have gone by themselves since.
        let others = [UInt8](repeating: 0x5a, count: 0x4000)
        run.guest.kernel.write(others, at: Self.pool.rawValue)
        run.guest.kernel.write(others, at: Self.other.rawValue)
        try run.standing { try run.manager.zeroEverything() }
        #expect(run.bytes(Self.pool, 0x4000) == others && run.bytes(Self.other, 0x4000) == others)
    }

    @Test("After a reset nothing is there, nothing is owed, and it can be deployed again")
    func forgotten() throws {
        let run = try AgentRun(["one", "two"])
        try run.deploy("one")
        try run.want("two")
        let away = try #require(try run.offer())
        try run.manager.forgetEverything()
        #expect(run.programs.allSatisfy(\.hasForgotten) && !run.manager.isOutstanding && !run.manager.wantsThread)
        #expect(run.notes.suffix(2) == ["0 gone", "1 gone"])
        try run.back(away.slot, Self.other.rawValue)
        #expect(try run.offer() == nil)
        try run.deploy("one")
        #expect(run.words == ["deployed one system-call", "deployed one system-call"])
    }
}
