import Agents
import GuestMemory
import HypervisorInterface
import Introspection
import PowerTransitions
import TestSupport
import Testing
import WindowsGuest
import X86

@Suite("Agents in the engine's hands") struct DeploymentTests {
    @Test("A thread is borrowed at a system call, stopped once, makes the calls and has all its registers back")
    func deploys() throws {
        let test = try AgentGuest()
        var vectors = VectorRegisters()
        vectors.xmm3 = SIMD2(3, 33)
        vectors.mxcsr = 0x1fa0
        test.machine.vectors = [vectors]
        var seen: [UInt64] = []
        func rip(_ machine: FakeMachine) { seen.append(machine.registers[0].rip) }
        var steps = test.deployment()
        steps.insert(test.look { #expect(test.isWatched && $0.registers[0] == Registers()) }, at: 0)
        steps.insert(
            test.look {
                rip($0)
                #expect(!test.isWatched)
            }, at: 2)
        steps.insert(test.look(rip), at: 4)
        steps.append(
            test.look { machine in
                #expect(machine.registers[0] == test.systemCall() && machine.vectors[0] == vectors)
                #expect(!test.isWatched && machine.sites.contains(test.bugCheck) && test.isThere())
            })
        _ = test.run.run(steps)
        #expect(seen == [test.functions.allocate.rawValue, AgentGuest.pool + UInt64(test.image.start)])
        #expect(
            test.words == ["attached", "deployed systemCall", "withdrawn byItself", "detached"] && test.run.isClean)
        #expect(test.run.warnings == [] && test.run.error == nil && test.machine.mostSites <= 4)
    }

    @Test(
        "A thread that may not be borrowed goes on as if nothing were, and the next one is asked for", arguments: 0..<3)
    func unfit(reason: Int) throws {
        let test = try AgentGuest()
        func unfit() -> Registers {
            test.systemCall { registers in
                switch reason {
                case 0: registers.rflags &= ~0x200
                case 1: registers.control.cr8 = 1
                default: registers.cs = 0x33
                }
            }
        }
        _ = test.run.run(
            [
                test.stop(unfit()),
                test.look { machine in
                    #expect(machine.registers[0] == unfit() && test.isWatched)
                },
            ] + test.deployment())
        #expect(test.words == ["attached", "deployed systemCall", "withdrawn byItself", "detached"])
        #expect(test.run.isClean && test.run.warnings == [])
    }

    @Test("A thread whose stack is not there is not borrowed, which is said, and the next one is")
    func noStack() throws {
        let test = try AgentGuest()
        func lost() -> Registers { test.systemCall { $0.rsp = 0xffff_b9ff_0000_0100 } }
        _ = test.run.run(
            [test.stop(lost()), test.look { #expect($0.registers[0] == lost() && test.isWatched) }]
                + test.deployment())
        #expect(test.run.warnings.count == 1 && test.words.contains("deployed systemCall") && test.run.isClean)
    }

    @Test("Of two that arrive at once one is borrowed, and the other goes on")
    func twoAtOnce() throws {
        let test = try AgentGuest(vcpus: 2)
        _ = test.run.run([
            { machine in
                machine.registers[1] = test.systemCall(thread: 4, vcpu: 1)
                return machine.stop(0, at: test.systemCall())
            },
            test.look { machine in
                #expect(machine.registers[0].rip == test.functions.allocate.rawValue)
                #expect(machine.registers[1] == test.systemCall(thread: 4, vcpu: 1) && !test.isWatched)
            },
            test.stop(test.back(test.systemCall(), 0)),
        ])
        #expect(test.words == ["attached", "failed", "detached"] && test.run.isClean)
    }

    @Test("Who comes by when nothing is wanted any more is let go, and nobody is asked for until something is")
    func late() throws {
        let test = try AgentGuest()
        let call = { test.guest.call(2, 4) }
        _ = test.run.run(
            [
                test.look { _ in #expect(test.isWatched) }, test.stop(call()),
                // Nothing was there: the caller went in at once.
                test.look { #expect($0.registers[0].rip == test.guest.entry.rawValue + 4) },
                test.stop(test.systemCall()),
                test.look { #expect($0.registers[0] == test.systemCall() && !test.isWatched) },
                test.run.exit({ $0.call(2, 4) }, status: 0xc000_0001),
                test.look { _ in #expect(test.isWatched) },
            ] + test.deployment())
        #expect(
            test.words == [
                "attached", "requested 1 sleep", "outcome 1 refused", "deployed systemCall", "withdrawn byItself",
                "detached",
            ])
        #expect(test.run.isClean)
    }

    @Test("A request's caller takes the agent out and enters when it is out; then the agent comes back")
    func withdraws() throws {
        let test = try AgentGuest()
        let call = { test.guest.call(2, 4) }
        _ = test.run.run(
            test.deployment() + [
                test.stop(call()),
                test.look { #expect($0.registers[0].rip == test.functions.setEvent.rawValue) },
                test.stop(test.back(call(), 0)),
                test.look { #expect($0.registers[0].rip == test.functions.free.rawValue && !test.isThere()) },
                test.stop(test.back(call(), 0)),
                test.look { machine in
                    #expect(machine.registers[0].rip == test.guest.entry.rawValue + 4 && !test.isWatched)
                    #expect(!machine.sites.contains(test.bugCheck))
                },
                { machine in
                    machine.become(.suspended)
                    return .host(.suspended)
                },
                { machine in
                    machine.become(.running)
                    return .host(.wokeUp)
                },
                test.run.exit({ $0.call(2, 4) }, status: 0), test.look { _ in #expect(test.isWatched) },
            ] + test.deployment())
        #expect(
            test.words == [
                "attached", "deployed systemCall", "requested 1 sleep", "withdrawn powerCall", "held 1",
                "released 1 withdrawn", "outcome 1 resumed", "deployed systemCall", "withdrawn byItself", "detached",
            ])
        #expect(test.run.isClean && test.run.warnings == [])
    }

    @Test("Whatever else is watched, there are never more than four sites, and the crash's is the first to go")
    func sites() throws {
        let test = try AgentGuest()
        // Calls that are no requests: their returns are watched all the same.
        let calls: [(FakeMachine) -> MachineEvent?] = (0..<4).map { index in
            test.stop(test.guest.call(9, 6, thread: index))
        }
        let counts = test.run.run(
            test.deployment() + calls + [
                test.look { machine in
                    #expect(machine.sites.count == 4 && !machine.sites.contains(test.bugCheck))
                    #expect(machine.sites.contains(test.guest.entrySite))
                }
            ])
        #expect(counts.unwatched == 1 && test.machine.mostSites == 4 && test.run.isClean)
    }

    @Test("A borrowed thread comes back to a Vigil that leaves: what it got is freed, and its registers are its own")
    func leavesWhileBorrowed() throws {
        let test = try AgentGuest()
        _ = test.run.run([
            test.stop(test.systemCall()), { _ in .interrupted },
            test.stop(test.back(test.systemCall(), AgentGuest.pool)),
            test.look { #expect($0.registers[0].rip == test.functions.free.rawValue) },
            test.stop(test.back(test.systemCall(), 0)),
        ])
        #expect(test.machine.registers[0] == test.systemCall() && !test.isThere())
        #expect(test.words == ["attached", "detached"] && test.run.isClean)
        #expect(test.run.detachment?.callersLeft == 0)
    }

    @Test("A thread that comes by while Vigil leaves, faster than its pause, is let on, and the machine runs")
    func comesByWhileLeaving() throws {
        let test = try AgentGuest()
        _ = test.run.run([
            { machine in
                machine.registers[0] = test.systemCall()
                machine.stopBeforePause = VCPU(0)
                return .interrupted
            }
        ])
        #expect(test.machine.state == .running && test.machine.registers[0] == test.systemCall())
        #expect(test.words == ["attached", "detached"] && test.run.isClean)
    }

    @Test("Another thread that comes to the entry with a borrowed one's stack pointer does not get its registers")
    func imposter() throws {
        let test = try AgentGuest()
        let imposter = {
            var registers = test.guest.call(9, 6, thread: 5)
            registers.rsp = test.back(test.systemCall(), 0).rsp
            _ = test.guest.call(9, 6, thread: 5)
            return registers
        }
        _ = test.run.run(
            [
                test.stop(test.systemCall()), test.stop(imposter()),
                test.look { machine in
                    var entered = imposter()
                    entered.rip += 4
                    #expect(machine.registers[0] == entered)
                },
                test.stop(test.back(test.systemCall(), 0)),
                test.look { #expect($0.registers[0] == test.systemCall()) },
            ])
        #expect(test.words.contains("ignored") && test.words.contains("failed") && test.run.isClean)
    }

    @Test("A reset takes the agent with it; the next boot gets it again", arguments: [0, 1, 2, 3])
    func reset(after steps: Int) throws {
        let test = try AgentGuest()
        _ = test.run.run(
            test.deployment().prefix(steps) + [
                { _ in
                    test.forgetThreads()
                    test.guest.kernel.write(UInt64(0), at: AgentGuest.pool)
                    return .host(.reset(byGuest: false))
                },
                test.look { machine in
                    #expect(test.isWatched && machine.sites.contains(test.guest.entrySite))
                },
            ] + test.deployment())
        #expect(test.words.filter { $0.hasPrefix("deployed") }.count == (steps == 3 ? 2 : 1))
        #expect(test.words.filter { $0 == "attached" }.count == 2 && test.run.isClean)
        #expect(test.words.filter { $0.hasPrefix("withdrawn") } == ["withdrawn byItself"])
    }

    @Test("A crash finds the agent's memory zeroed, whoever tells of it", arguments: [true, false])
    func crash(isSeen: Bool) throws {
        let test = try AgentGuest()
        _ = test.run.run(
            test.deployment() + [
                { machine in
                    if !isSeen {
                        machine.become(.guestPanicked)
                        return .host(.guestPanicked)
                    }
                    var registers = test.systemCall()
                    registers.rip = test.guest.kernel.address("KeBugCheckEx")
                    return machine.stop(0, at: registers)
                },
                test.look { machine in
                    #expect(test.bytes().allSatisfy { $0 == 0 })
                    #expect(!machine.sites.contains(test.bugCheck) && !test.isWatched)
                    if isSeen { #expect(machine.registers[0].rip == test.guest.kernel.address("KeBugCheckEx")) }
                },
            ])
        #expect(
            test.words.filter { $0 != "unannounced guestPanicked" } == [
                "attached", "deployed systemCall", "withdrawn zeroed", "detached",
            ])
        #expect(test.run.isClean)
    }

    @Test("A crash while something is under way leaves nothing that is waited for")
    func crashDuringCall() throws {
        let test = try AgentGuest()
        _ = test.run.run([
            test.stop(test.systemCall()), test.stop(test.back(test.systemCall(), AgentGuest.pool)),
            { machine in
                var registers = test.systemCall(thread: 4)
                registers.rip = test.guest.kernel.address("KeBugCheckEx")
                return machine.stop(0, at: registers)
            },
            test.look { machine in
                #expect(test.bytes().allSatisfy { $0 == 0 })
                #expect(machine.sites == [test.guest.entrySite])
            },
            { _ in .gone(reason: "test") },
        ])
        #expect(test.words.contains("withdrawn zeroed"))
    }

    // MARK: Any order

    @Test("Calls, returns and host events in any order, doubled or missing, end in good order", arguments: 0..<60)
    func random(seed: UInt64) throws {
        let test = try AgentGuest()
        let story = Story(test, seed: seed)
        if seed % 4 == 3 { test.run.options.agentDeadlines.call = .zero }
        if seed % 4 == 2 { test.run.options.agentDeadlines.withdrawal = .zero }
        if seed % 3 == 1 { test.run.options.withdrawalPlace = .systemCall }
        if seed % 5 == 1 { test.run.options.guardOptions = PowerGuardOptions(hold: .milliseconds(1)) }
        _ = test.run.run((0..<300).map { _ in story.next } + [{ _ in .interrupted }] + (0..<400).map { _ in story.end })
        #expect(test.run.error == nil && test.machine.violations == [], "seed \(seed)")
        #expect(test.run.detachment?.callersLeft == 0 && test.run.isClean, "seed \(seed): \(test.words)")
        #expect(story.problems == [], "seed \(seed)")
        #expect(test.machine.mostSites <= 4)
        // Something has happened, whatever it was.
        #expect(test.words.count > 8, "seed \(seed): \(test.words)")
    }
}

/// What four threads of a guest do by chance, one at a time on one vCPU, and what its host says.
private final class Story {
    private enum Place { case free, sentOff, entered }
    private struct Thread {
        var place = Place.free
        /// Where it was stopped last, with its own registers.
        var own = Registers()
        /// The function that it was sent into.
        var function: UInt64 = 0
        var isBorrowed = false
    }

    private let test: AgentGuest
    private var random: SeededGenerator
    private var threads = Array(repeating: Thread(), count: 4)
    private var current: Int?
    private var nextBlock: UInt64 = 0
    private(set) var problems: [String] = []

    init(_ test: AgentGuest, seed: UInt64) {
        self.test = test
        random = SeededGenerator(seed: seed)
    }

    /// What the last stop has made of the thread that had it.
    private func settle(_ machine: FakeMachine) {
        guard let index = current else { return }
        current = nil
        let registers = machine.registers[0]
        let own = threads[index].own
        if registers.rip == own.rip &+ 4, own.rip == test.guest.entry.rawValue, registers.rsp == own.rsp {
            var entered = own
            entered.rip += 4
            if registers != entered { problems.append("a caller went in with others' registers") }
            threads[index].place = .entered
        } else if registers == own {
            threads[index].place = .free
        } else {
            threads[index].place = .sentOff
            threads[index].function = registers.rip
        }
    }

    private func result(of index: Int) -> UInt64 {
        let function = threads[index].function
        if function == test.functions.allocate.rawValue {
            if Int.random(in: 0..<4, using: &random) == 0 { return 0 }
            nextBlock = (nextBlock + 1) % 16
            return AgentGuest.pool + nextBlock * 0x4000
        }
        if function >= AgentGuest.pool, function < AgentGuest.pool + 0x40000 {
            if Int.random(in: 0..<4, using: &random) == 0 { return 0xc000_0001 }
            test.startThread(function - UInt64(test.image.start))
        }
        return 0
    }

    private func comeBack(_ index: Int, _ machine: FakeMachine) -> MachineEvent? {
        _ = test.guest.call(thread: index)
        current = index
        let result = result(of: index)
        return machine.stop(0, at: test.back(threads[index].own, result))
    }

    func end(_ machine: FakeMachine) -> MachineEvent? {
        settle(machine)
        test.threadsLeave = true
        guard machine.state == .running else {
            machine.become(.running)
            return .host(.wokeUp)
        }
        guard machine.sites.contains(test.guest.entrySite),
            let index = threads.indices.filter({ threads[$0].place == .sentOff }).randomElement(using: &random)
        else { return nil }
        return comeBack(index, machine)
    }

    func next(_ machine: FakeMachine) -> MachineEvent? {
        settle(machine)
        let chance = Int.random(in: 0..<100, using: &random)
        if machine.state != .running {
            machine.become(.running)
            return chance < 50 ? .host(.wokeUp) : nil
        }
        test.threadsLeave = Int.random(in: 0..<4, using: &random) > 0
        let index = threads.indices.randomElement(using: &random)!
        switch chance {
        case 0..<6:
            if threads.contains(where: { $0.place == .entered }) { machine.become(.suspended) }
            return .host(.suspended)
        case 6..<10: return .host(.wokeUp)
        case 10..<12:
            threads = Array(repeating: Thread(), count: threads.count)
            test.forgetThreads()
            test.guest.kernel.write([UInt8](repeating: 0, count: 0x4_0000), at: AgentGuest.pool)
            return .host(.reset(byGuest: Bool.random(using: &random)))
        case 12..<14: return .host(.suspendedToDisk)
        case 14..<30: return nil
        default: break
        }
        switch threads[index].place {
        case .free:
            if test.isWatched, Bool.random(using: &random) {
                threads[index].own = test.systemCall(thread: index)
                current = index
                return machine.stop(0, at: threads[index].own)
            }
            guard chance < 40, machine.sites.contains(test.guest.entrySite) else { return nil }
            let user = chance < 34
            threads[index].own = test.guest.call(2, 4, from: user ? .user : .kernel, thread: index)
            if chance < 32 { threads[index].own.rflags &= ~0x200 }
            current = index
            return machine.stop(0, at: threads[index].own)
        case .sentOff:
            guard machine.sites.contains(test.guest.entrySite) else { return nil }
            return comeBack(index, machine)
        case .entered:
            threads[index].place = .free
            let returned = test.guest.returned(
                from: threads[index].own, status: Bool.random(using: &random) ? 0 : 0xc000_0001)
            machine.registers[0] = returned
            guard machine.sites.contains(test.guest.watch(of: threads[index].own)) else { return nil }
            return machine.stop(0, .watchpoint(GuestVirtualAddress(returned.rsp - 8)))
        }
    }
}
