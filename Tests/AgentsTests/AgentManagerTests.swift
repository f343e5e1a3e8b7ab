import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

@testable import Agents

@Suite("The agents' queue") struct AgentManagerTests {
    static let pool = AgentRun.pool

    // MARK: There and back

    @Test("An agent is allocated, loaded, started; told to leave, and freed when it has left")
    func thereAndBack() throws {
        let run = try AgentRun()
        #expect(!run.manager.wantsThread && run.state() == .absent)
        try run.want()
        #expect(run.manager.wantsThread && run.state() == .injecting && run.manager.isOutstanding)
        let allocation = try #require(try run.offer())
        #expect(
            allocation.call
                == GuestCall(
                    run.functions.allocate, [.value(0), .value(UInt64(AgentRun.size)), .value(0x6c67_6956)],
                    owed: .result(run.block(GuestVirtualAddress(0)))))
        #expect(!run.manager.wantsThread && run.words.isEmpty && run.notes.isEmpty)
        run.pass(.milliseconds(3))
        try run.back(allocation.slot, Self.pool.rawValue)
        // The guardian is told before it runs, and only then.
        #expect(run.notes.isEmpty && run.state() == .injecting)
        let start = try #require(try run.offer())
        #expect(start.call == run.startCall && run.notes == ["0 there"])
        run.pass(.milliseconds(4))
        try run.back(start.slot)
        #expect(run.state() == .deployed && run.programs[0].leadsTo == Self.pool)
        #expect(
            run.events == [
                .deployed(
                    agent: "one", base: Self.pool, size: AgentRun.size, duration: .milliseconds(7), place: .systemCall)
            ])
        #expect(run.manager.deployed == ["one"] && !run.manager.isBusy && run.manager.isOutstanding)
        #expect(try run.offer() == nil && !run.manager.wantsThread)
        run.set(Self.pool, .stage, 1)

        try run.want("one", false)
        #expect(run.state() == .draining && run.programs[0].leadsTo == nil && run.programs[0].detachments == 1)
        let signal = try #require(try run.offer(.powerCall))
        #expect(
            signal.call
                == GuestCall(run.functions.setEvent, [.value(Self.pool.rawValue + 0x90), .value(0), .value(0)]))
        #expect(run.word(Self.pool, .stopWanted) == 1 && run.word(Self.pool, .mayLeave) == 1)
        try run.back(signal.slot)
        #expect(try run.offer() == nil && run.manager.keepsThread && run.state() == .draining)
        run.leave()
        run.pass(.milliseconds(2))
        let free = try #require(try run.offer(.powerCall))
        #expect(free.call == run.freeCall && run.state() == .unloading)
        #expect(run.notes == ["0 there", "0 gone"] && !run.isThere(Self.pool))
        try run.back(free.slot)
        #expect(run.state() == .absent && !run.manager.isOutstanding && !run.manager.keepsThread)
        #expect(
            run.events.dropFirst() == [
                .withdrawn(agent: "one", duration: .milliseconds(2), way: .freed(.powerCall))
            ])
        #expect(run.machine.violations == [])
    }

    @Test("What is no agent any more when its block is to be given back is not written to")
    func notThereAnyMore() throws {
        let run = try AgentRun()
        try run.deploy()
        try run.want("one", false)
        try run.call()
        run.leave()
        try run.standing {
            _ = try #require(try run.manager.nextCall(from: .systemCall))
            run.guest.kernel.write(0x1122_3344_5566_7788 as UInt64, at: Self.pool.rawValue)
            run.manager.didSend(slot: 99)
            #expect(run.bytes(Self.pool, 8) == [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11])
        }
    }

    @Test("Until a thread is on its way to give its block back, the guardian knows an agent's block as the agent's")
    func owedBeforeGone() throws {
        let run = try AgentRun()
        try run.deploy()
        try run.want("one", false)
        try run.call()
        run.leave()
        try run.standing {
            let call = try #require(try run.manager.nextCall(from: .systemCall))
            #expect(call == run.freeCall && call.owed != nil)
            #expect(run.notes == ["0 there"] && run.isThere(Self.pool))
            run.manager.didSend(slot: 99)
            #expect(run.notes == ["0 there", "0 gone"] && !run.isThere(Self.pool))
        }
    }

    @Test("Every field that the host fills in, and every byte that it does not", arguments: [true, false])
    func bytes(hasGate: Bool) throws {
        let run = try AgentRun(gate: hasGate ? AgentRun.gate : nil)
        run.guest.kernel.write([UInt8](repeating: 0xaa, count: 0x3000), at: Self.pool.rawValue)
        try run.want()
        try run.call(Self.pool.rawValue)
        var expected = run.programs[0].image.bytes
        func put<Value: FixedWidthInteger & BitwiseCopyable>(_ value: Value, _ offset: Int) {
            let bytes = withUnsafeBytes(of: value.littleEndian) { Array($0) }
            expected.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        }
        for (offset, name) in [
            (0x28, "PsCreateSystemThread"), (0x30, "PsTerminateSystemThread"), (0x38, "ZwClose"),
            (0x40, "KeInitializeEvent"), (0x48, "KeWaitForSingleObject"), (0x50, "ExFreePoolWithTag"),
        ] { put(run.guest.kernel.address(name), offset) }
        put(0xffff_f780_0000_0000 as UInt64, 0x58)
        put(0x6c67_6956 as UInt32, 0x60)
        put(100 as UInt32, 0x64)
        // Ten seconds without a sign of life.
        put(100 as UInt32, 0x68)
        put(1 as UInt32, 0x6c)
        put(hasGate ? 0 : 1 as UInt32, 0x74)
        // `xor eax, eax; ret`
        put(run.guest.kernel.address("KeSetEvent") + 2, 0xd0)
        expected[AgentRun.data] = 0xda
        let found = run.bytes(Self.pool, 0x3000)
        #expect(Array(found[..<AgentRun.fileSize]) == expected)
        #expect(found[AgentRun.fileSize..<AgentRun.size].allSatisfy { $0 == 0 })
        #expect(found[AgentRun.size...].allSatisfy { $0 == 0xaa })
    }

    @Test("A machine whose running guest cannot be written to gets agents that wait for no sign of life")
    func noLease() throws {
        let run = try AgentRun(runningWrites: false)
        try run.deploy()
        let rounds = try run.kernel.memory.load(UInt32.self, at: Self.pool + 0x68)
        #expect(rounds == .max)
        run.pass(.seconds(1))
        try run.tick()
        #expect(run.word(Self.pool, .lease) == 1 && run.machine.violations == [])
    }

    @Test("An agent that changes code is not deployed without the user's leave")
    func visible() throws {
        let run = try AgentRun(patchesCode: true, allowed: false)
        #expect(throws: AgentError.self) { try run.want() }
        #expect(throws: AgentError.self) { try run.want("another") }
        #expect(run.state() == .absent && !run.manager.wantsThread)
        try run.want("one", false)
    }

    // MARK: What goes wrong on the way in

    @Test("Without memory it is not deployed, which is said once; it can be asked for again")
    func noMemory() throws {
        let run = try AgentRun()
        try run.want()
        try run.call(0)
        #expect(run.words == ["failed one"] && !run.manager.isOutstanding && !run.manager.wantsThread)
        #expect(try run.offer() == nil)
        try run.deploy()
        #expect(run.words == ["failed one", "deployed one system-call"])
    }

    @Test(
        "Memory of the pool's that code cannot run in is given back, untouched",
        arguments: [
            [PageTableBuilder.Flags.writable], [.present], [.present, .writable, .noExecute],
            [.present, .writable, .user],
        ])
    func badMemory(flags: [PageTableBuilder.Flags]) throws {
        let run = try AgentRun()
        // The second page is another kind; the first is as it should be.
        let base = GuestVirtualAddress(0xffff_b900_1000_0000)
        run.guest.addPool(pages: 4, at: base.rawValue)
        let set = flags.reduce(PageTableBuilder.Flags()) { $0.union($1) }
        let entry = run.guest.kernel.entry(of: base.rawValue + 0x1000)
        run.guest.kernel.setEntry(of: base.rawValue + 0x1000, to: entry & 0x000f_ffff_ffff_f000 | set.rawValue)
        try run.want()
        try run.call(base.rawValue + 0x20)
        #expect(run.words.isEmpty && run.notes.isEmpty)
        #expect(run.bytes(base, 0x1000).allSatisfy { $0 == 0 })
        #expect(try run.call() == run.freeCall(base + 0x20))
        #expect(run.words == ["failed one"] && !run.manager.isOutstanding)
    }

    @Test(
        "What cannot be the pool's is neither used nor given back",
        arguments: [
            0x10, 0x7ff0_0000_0000, 0xffff_ffff_ffff_f000, 0xffff_ffff_ffff_ff00, 0x8000_0000_0000_0000,
            AgentRun.pool.rawValue + 8,
        ])
    func noMemoryOfTheKernels(rax: UInt64) throws {
        let run = try AgentRun()
        try run.want()
        try run.call(rax)
        #expect(try run.offer() == nil)
        #expect(run.words == ["failed one"] && !run.manager.isOutstanding)
    }

    @Test("A start routine that fails has its memory freed, and the failure is said once")
    func startFails() throws {
        let run = try AgentRun()
        try run.want()
        try run.call(Self.pool.rawValue)
        try run.call(0xffff_ffff_c000_009a)
        #expect(run.words.isEmpty && run.manager.wantsThread)
        #expect(try run.call() == run.freeCall)
        #expect(run.events == [.failed(agent: "one", reason: "its start routine failed with 0xc000009a")])
        #expect(run.notes == ["0 there", "0 gone"] && run.programs[0].leadsTo == nil)
    }

    @Test("A start routine's success may have upper bits of anything")
    func startSucceeds() throws {
        let run = try AgentRun()
        try run.want()
        try run.call(Self.pool.rawValue)
        try run.call(0xdead_beef_0000_0102)
        #expect(run.state() == .deployed)
    }

    @Test("An image that cannot be prepared is not started, and its memory freed")
    func badPreparation() throws {
        let run = try AgentRun()
        run.programs[0].refusesPreparation = true
        try run.want()
        try run.call(Self.pool.rawValue)
        #expect(try run.call() == run.freeCall)
        #expect(run.words == ["failed one"] && run.notes == ["0 gone"])
    }

    @Test("Memory that is gone when the agent is to be started is not started, and given back")
    func goneBeforeStart() throws {
        let run = try AgentRun()
        try run.want()
        try run.call(Self.pool.rawValue)
        run.guest.kernel.setEntry(of: Self.pool.rawValue, to: 0)
        #expect(try run.call() == run.freeCall)
        #expect(run.words == ["failed one"])
    }

    @Test("An agent that cannot be attached goes again, as one that is not wanted", arguments: [true, false])
    func attachFails(inPart: Bool) throws {
        let run = try AgentRun()
        run.programs[0].refusesAttaching = true
        run.programs[0].attachesInPart = inPart
        try run.want()
        try run.call(Self.pool.rawValue)
        try run.call()
        run.set(Self.pool, .stage, 1)
        #expect(run.state() == .draining && run.programs[0].leadsTo == nil)
        #expect(try run.call()?.function == run.functions.setEvent)
        run.leave()
        #expect(try run.call() == run.freeCall)
        #expect(run.events == [.failed(agent: "one", reason: "not attachable")])
    }

    @Test("An agent that can neither be attached nor, at first, detached is never started twice")
    func attachAndDetachFail() throws {
        let run = try AgentRun()
        run.programs[0].refusesAttaching = true
        run.programs[0].attachesInPart = true
        run.programs[0].refusedDetachments = 2
        try run.want()
        try run.call(Self.pool.rawValue)
        try run.call()
        run.set(Self.pool, .stage, 1)
        #expect(run.programs[0].leadsTo == Self.pool)
        // While something leads there, it may not leave.
        #expect(try run.call()?.function == run.functions.setEvent)
        #expect(run.word(Self.pool, .mayLeave) == 0 && run.programs[0].leadsTo == Self.pool)
        run.leave()
        #expect(try run.call() == run.freeCall)
        #expect(run.programs[0].leadsTo == nil && run.words == ["failed one"])
    }

    // MARK: Wishes that change

    @Test("Not wanted any more before a thread came: nothing was done, and nothing is")
    func cancelledWaiting() throws {
        let run = try AgentRun()
        try run.want()
        try run.want("one", false)
        #expect(try run.offer() == nil)
        #expect(run.state() == .absent && run.words.isEmpty && !run.manager.isOutstanding)
    }

    @Test("Not wanted any more during the allocation: what it got is freed, and nothing is written there")
    func cancelledAllocating() throws {
        let run = try AgentRun()
        try run.want()
        let allocation = try #require(try run.offer())
        try run.want("one", false)
        #expect(run.manager.isOutstanding)
        try run.back(allocation.slot, Self.pool.rawValue)
        #expect(run.bytes(Self.pool, AgentRun.size).allSatisfy { $0 == 0 })
        #expect(try run.call() == run.freeCall)
        #expect(run.state() == .absent && run.words.isEmpty && !run.manager.isOutstanding)
    }

    @Test("Not wanted any more before the start: it is not started")
    func cancelledBeforeStart() throws {
        let run = try AgentRun()
        try run.want()
        try run.call(Self.pool.rawValue)
        try run.want("one", false)
        #expect(try run.call() == run.freeCall)
        #expect(run.state() == .absent && run.words.isEmpty)
    }

    @Test("Not wanted any more during the start: its thread is told to leave, and it is never attached")
    func cancelledStarting() throws {
        let run = try AgentRun()
        try run.want()
        try run.call(Self.pool.rawValue)
        let start = try #require(try run.offer())
        try run.want("one", false)
        try run.back(start.slot)
        #expect(run.state() == .draining && run.programs[0].leadsTo == nil)
        #expect(try run.call()?.function == run.functions.setEvent)
        run.leave()
        #expect(try run.call() == run.freeCall)
        #expect(run.state() == .absent && run.words == ["withdrawn one system-call"])
    }

    @Test("Wanted again while it leaves: it leaves, and comes back once")
    func wantedAgain() throws {
        let run = try AgentRun()
        try run.deploy()
        try run.want("one", false)
        try run.want()
        try run.call()
        run.leave()
        #expect(try run.call() == run.freeCall)
        #expect(run.state() == .injecting)
        try run.deploy()
        #expect(try run.offer() == nil)
        #expect(run.words == ["deployed one system-call", "withdrawn one system-call", "deployed one system-call"])
    }

    @Test("A thread that could not be sent off has called nothing: the next one makes the call")
    func notSent() throws {
        let run = try AgentRun()
        try run.want()
        for base in [Self.pool.rawValue, 0] {
            let call = try run.standing { try run.manager.nextCall(from: .systemCall) }
            #expect(call != nil && !run.manager.wantsThread)
            run.manager.couldNotSend()
            #expect(run.manager.wantsThread)
            #expect(try run.call(base) == call)
        }
        #expect(run.words == ["deployed one system-call"])
    }

    @Test("Suspended, everything goes and nothing comes; resumed, what is wanted is back once")
    func suspended() throws {
        let run = try AgentRun(["one", "two"])
        try run.deploy("one")
        try run.standing { try run.manager.suspend() }
        try run.want("two")
        #expect(run.state("two") == .absent)
        try run.call()
        run.leave()
        try run.call()
        #expect(run.words.last == "withdrawn one system-call" && !run.manager.isOutstanding)
        try run.standing { try run.manager.suspend() }
        #expect(try run.offer() == nil && !run.manager.wantsThread)
        run.manager.resume()
        run.manager.resume()
        try run.deploy("one")
        try run.deploy("two", at: Self.pool + 0x4000)
        #expect(try run.offer() == nil)
        #expect(run.words.filter { $0.hasPrefix("deployed") }.count == 3)
        // Not wanted while suspended: not put back.
        try run.standing { try run.manager.suspend() }
        try run.want("two", false)
        for _ in 0..<2 { try run.call() }
        run.leave()
        run.leave(Self.pool + 0x4000)
        for _ in 0..<2 { try run.call() }
        run.manager.resume()
        #expect(run.state("one") == .injecting && run.state("two") == .absent)
    }

    @Test("Resumed while it still leaves, it comes back once it has left", arguments: [true, false])
    func resumedEarly(inTime: Bool) throws {
        let run = try AgentRun()
        try run.deploy()
        try run.standing { try run.manager.suspend() }
        try run.call()
        run.manager.resume()
        #expect(run.state() == .draining)
        if inTime {
            run.leave()
            try run.call()
        } else {
            run.pass(.seconds(5))
            try run.tick()
            #expect(run.words.last == "neutralised one")
        }
        #expect(run.state() == .injecting)
        try run.deploy(at: Self.pool + 0x4000)
        #expect(run.words.last == "deployed one system-call")
    }

    @Test("That one agent cannot be detached does not keep the others in the guest")
    func suspendedInPart() throws {
        let run = try AgentRun(["one", "two"])
        try run.deploy("one")
        try run.deploy("two", at: Self.pool + 0x4000)
        run.programs[0].refusedDetachments = 1
        #expect(throws: AgentError.self) { try run.standing { try run.manager.suspend() } }
        #expect(run.state("one") == .draining && run.state("two") == .draining)
        #expect(run.programs[0].leadsTo != nil && run.programs[1].leadsTo == nil)
        // It is tried again when a thread comes by.
        try run.call()
        #expect(run.programs[0].leadsTo == nil)
    }

    // MARK: Several

    @Test("Several agents: one call at a time, what goes out first comes first, and each end is said once")
    func several() throws {
        let run = try AgentRun(["one", "two", "three"])
        for name in ["one", "two", "three"] { try run.want(name) }
        let allocation = try #require(try run.offer())
        #expect(try run.offer() == nil)
        try run.back(allocation.slot, Self.pool.rawValue)
        #expect(try run.call() == run.startCall)
        run.set(Self.pool, .stage, 1)
        let second = try #require(try run.offer())
        #expect(second.call.arguments[1] == .value(UInt64(AgentRun.size + 0x10)))
        try run.want("one", false)
        #expect(try run.offer() == nil)
        try run.back(second.slot, Self.pool.rawValue + 0x4000)
        // The one that goes is told before the other one starts.
        #expect(try run.call()?.function == run.functions.setEvent)
        #expect(try run.call()?.function == Self.pool + UInt64(0x4000 + AgentRun.start))
        run.leave()
        #expect(try run.call() == run.freeCall)
        try run.call(Self.pool.rawValue)
        try run.call()
        #expect(try run.offer() == nil)
        #expect(
            run.words == [
                "deployed one system-call", "deployed two system-call", "withdrawn one system-call",
                "deployed three system-call",
            ])
        #expect(run.manager.deployed == ["two", "three"] && run.notes == ["0 there", "1 there", "0 gone", "2 there"])
    }

    // MARK: Leaving

    @Test("It may leave only when no vCPU is in the code of the gate", arguments: [0, 1])
    func gate(vcpu: Int) throws {
        let run = try AgentRun(vcpus: 2)
        try run.deploy()
        try run.want("one", false)
        for offset in [AgentRun.gate.lowerBound, AgentRun.gate.upperBound - 1] {
            run.machine.registers[vcpu].rip = Self.pool.rawValue + UInt64(offset)
            try run.call()
            #expect(run.word(Self.pool, .mayLeave) == 0)
        }
        // Behind the gate's code it is counted.
        run.machine.registers[vcpu].rip = Self.pool.rawValue + UInt64(AgentRun.gate.upperBound)
        _ = try run.offer()
        #expect(run.word(Self.pool, .mayLeave) == 1)
    }

    @Test("A vCPU whose gate code an NMI has interrupted is in it, on whichever of the stacks", arguments: 0..<7)
    func interruptStack(index: Int) throws {
        let run = try AgentRun()
        try run.deploy()
        let (tss, top) = (0xffff_b900_0003_0000 as UInt64, 0xffff_b900_0003_8000 as UInt64)
        let processor = run.guest.kernel.processorRegion
        run.guest.kernel.write(tss, at: processor + 8)
        for slot in 0..<7 {
            // The others lie elsewhere, or nowhere.
            let stack: UInt64 = slot == index ? top + 8 : slot % 2 == 0 ? 0 : 0xffff_b9ff_0000_0000
            run.guest.kernel.write(stack, at: tss + 0x24 + 8 * UInt64(slot))
        }
        run.guest.kernel.write(Self.pool.rawValue + UInt64(AgentRun.gate.lowerBound) + 4, at: top - 0x28)
        var registers = Registers()
        registers.rip = run.guest.entry.rawValue
        registers.cs = 0x10
        registers.gsBase = processor
        registers.rsp = top - 0x200
        run.machine.registers[0] = registers
        try run.want("one", false)
        try run.call()
        #expect(run.word(Self.pool, .mayLeave) == 0)
        // The interrupt is over: the stack is as it was, and nobody on it.
        run.machine.registers[0].rsp = top + 0x100
        _ = try run.offer()
        #expect(run.word(Self.pool, .mayLeave) == 1)
    }

    @Test("A TSS, or stacks, that are nonsense hide nobody and harm nothing")
    func hostileStacks() throws {
        let run = try AgentRun()
        try run.deploy()
        let processor = run.guest.kernel.processorRegion
        run.machine.registers[0].cs = 0x10
        run.machine.registers[0].rsp = .max
        for (base, tss) in [(processor, UInt64.max - 3), (processor, 0), (.max - 4, 0), (0x1000, 0)] {
            run.guest.kernel.write(tss, at: processor + 8)
            run.machine.registers[0].gsBase = base
            #expect(InterruptStacks.interruptedPlaces(run.machine.registers[0], in: run.kernel.memory) == [])
        }
    }

    @Test("Its memory is freed only when it has left, nobody is counted in it and no vCPU is there")
    func freedLast() throws {
        let run = try AgentRun(vcpus: 2)
        try run.deploy()
        try run.want("one", false)
        try run.call()
        run.set(Self.pool, .inside, 1)
        for stage: UInt32 in [1, 2, 4, 77] {
            run.set(Self.pool, .stage, stage)
            #expect(try run.offer() == nil)
        }
        run.leave()
        #expect(try run.offer() == nil)
        run.set(Self.pool, .inside, 0)
        for offset in [0, 0x1000, AgentRun.size - 1] {
            run.machine.registers[1].rip = Self.pool.rawValue + UInt64(offset)
            #expect(try run.offer() == nil)
        }
        #expect(run.manager.keepsThread)
        run.machine.registers[1].rip = Self.pool.rawValue + UInt64(AgentRun.size)
        #expect(try run.call() == run.freeCall)
    }

    @Test("A caller waits in vain for threads that system calls are to bring, until half of the time is over")
    func fallback() throws {
        let run = try AgentRun()
        run.manager.withdrawalPlace = .systemCall
        try run.deploy()
        try run.want("one", false)
        run.pass(.milliseconds(2499))
        #expect(try run.offer(.powerCall) == nil && run.manager.wantsThread)
        run.pass(.milliseconds(1))
        #expect(try run.call(0, .powerCall)?.function == run.functions.setEvent)
    }

    // MARK: Signs of life

    @Test("The sign of life is renewed only while it is deployed and there")
    func lease() throws {
        let run = try AgentRun()
        try run.want()
        try run.call(Self.pool.rawValue)
        run.pass(.seconds(1))
        try run.tick()
        #expect(run.word(Self.pool, .lease) == 1)
        try run.call()
        run.set(Self.pool, .stage, 1)
        #expect(try run.tick() == .milliseconds(500))
        let first = run.word(Self.pool, .lease)
        run.pass(.milliseconds(500))
        try run.tick()
        let second = run.word(Self.pool, .lease)
        #expect(second != first)
        run.pass(.milliseconds(499))
        #expect(try run.tick() == .milliseconds(1))
        #expect(run.word(Self.pool, .lease) == second)
        try run.want("one", false)
        run.pass(.seconds(1))
        try run.tick()
        #expect(run.word(Self.pool, .lease) == second && run.machine.violations == [])
    }

    @Test(
        "An agent that went by itself is not written to any more; it is back if it is wanted", arguments: [true, false])
    func abandoned(isLeaving: Bool) throws {
        let run = try AgentRun(gate: nil)
        try run.deploy()
        if isLeaving { try run.want("one", false) }
        let others = [UInt8](repeating: 0x5a, count: AgentRun.size)
        run.guest.kernel.write(others, at: Self.pool.rawValue)
        run.pass(.seconds(1))
        try run.tick()
        // A reset would look the same, and be told of before the next look.
        if !isLeaving { #expect(run.words == ["deployed one system-call"] && run.state() == .deployed) }
        run.pass(.milliseconds(500))
        try run.tick()
        if isLeaving { #expect(try run.offer() == nil) }
        #expect(run.words.last == "withdrawn one by-itself" && run.bytes(Self.pool, AgentRun.size) == others)
        #expect(run.state() == (isLeaving ? .absent : .injecting) && run.notes.last == "0 gone")
        if !isLeaving { try run.deploy(at: Self.pool + 0x4000) }
        #expect(run.bytes(Self.pool, AgentRun.size) == others)
    }

    @Test("What agents have to say is said; one that does not make sense any more is taken out, and the others stay")
    func collects() throws {
        let run = try AgentRun(["one", "two"])
        try run.deploy("one")
        try run.deploy("two", at: Self.pool + 0x4000)
        run.programs[0].refusesToTell = true
        run.programs[1].reports = [.lost(3)]
        try run.tick()
        #expect(run.words.last == "report two lost(3)")
        #expect(run.state("one") == .draining && run.state("two") == .deployed)
        try run.want("two", false)
        run.pass(.seconds(5))
        try run.tick()
        #expect(run.words.suffix(2) == ["neutralised one", "neutralised two"])
    }
}
