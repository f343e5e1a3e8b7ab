import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import X86

@Suite("The one place through which a guest is changed") struct GuestEffectsTests {
    static let site = BreakpointSite.execution(GuestVirtualAddress(0x1000))
    static let failure = HypervisorError.unsupported("made to fail")

    /// Control of a machine, taken; the log begins after that.
    static func controlled(_ state: RunState = .running) throws -> (FakeMachine, GuestEffects) {
        let machine = FakeMachine(ram: SyntheticRAM(size: 1 << 16), vcpus: 2)
        let effects = GuestEffects(machine: machine)
        try effects.takeControl {}
        if !state.isRunning { machine.become(state) }
        machine.clearLog()
        return (machine, effects)
    }

    static func error(_ body: () throws(HypervisorError) -> Void) -> HypervisorError? {
        do throws(HypervisorError) {
            try body()
            return nil
        } catch {
            return error
        }
    }

    @Test("A running machine is paused, changed and resumed, and witnesses hear of each first")
    func pauses() throws {
        let (machine, effects) = try Self.controlled()
        let result = try effects.withPaused { () throws(HypervisorError) in
            try effects.insert(Self.site)
            return machine.state
        }
        #expect(result == .paused && machine.state == .running)
        #expect(machine.actions == [.paused, .inserted(Self.site), .resumed])
        #expect(
            machine.log.prefix(4)
                == [.announced(.pause), .paused, .announced(.insert(Self.site)), .inserted(Self.site)])
        #expect(machine.announcements == [.pause, .insert(Self.site), .resume])
        #expect(effects.counts.pauses == 2 && machine.violations == [])
    }

    @Test("A machine is resumed where the change throws, and the change's error is the one reported")
    func resumesOnError() throws {
        let (machine, effects) = try Self.controlled()
        let thrown = Self.error { () throws(HypervisorError) in
            try effects.withPaused { () throws(HypervisorError) in throw Self.failure }
        }
        #expect(thrown == Self.failure && machine.state == .running)
        machine.failures[.resume] = [.unsupported("cannot resume either")]
        let second = Self.error { () throws(HypervisorError) in
            try effects.withPaused { () throws(HypervisorError) in throw Self.failure }
        }
        #expect(second == Self.failure)
    }

    @Test("Pauses within a pause are one")
    func nested() throws {
        let (machine, effects) = try Self.controlled()
        try effects.withPaused { () throws(HypervisorError) in
            try effects.withPaused { () throws(HypervisorError) in #expect(machine.state == .paused) }
            #expect(machine.state == .paused)
        }
        #expect(machine.actions == [.paused, .resumed])
    }

    @Test(
        "A machine that stands already is neither paused nor resumed",
        arguments: [
            RunState.paused, .suspended, .notStarted, .poweredOff, .guestPanicked,
        ])
    func standing(state: RunState) throws {
        let (machine, effects) = try Self.controlled(state)
        try effects.withPaused { () throws(HypervisorError) in try effects.insert(Self.site) }
        #expect(
            Self.error { () throws(HypervisorError) in
                try effects.withPaused { () throws(HypervisorError) in throw Self.failure }
            } == Self.failure)
        #expect(machine.state == state && machine.actions == [.inserted(Self.site)])
        #expect(machine.violations == [])
    }

    @Test("A breakpoint that is faster than a pause keeps its stop, which is handled as the next event")
    func breakpointIsFaster() throws {
        let (machine, effects) = try Self.controlled()
        machine.stopBeforePause = VCPU(1)
        try effects.withPaused { () throws(HypervisorError) in try effects.insert(Self.site) }
        #expect(machine.state == .stoppedByDebugger && machine.actions == [.inserted(Self.site)])
        #expect(try machine.nextEvent(until: .now) == .stop(Stop(vcpu: VCPU(1), reason: .breakpoint)))
        #expect(effects.counts.pauses == 1)
    }

    @Test("Where such a stop is still to be handled, nothing is done that would leave the machine standing")
    func stopIsPending() throws {
        let (machine, effects) = try Self.controlled()
        machine.stopBeforePause = VCPU(0)
        try effects.withPaused {}
        #expect(try !effects.withPausedUnlessStopped { Issue.record("done during a breakpoint's stop") })
        #expect(try machine.nextEvent(until: .now) == .stop(Stop(vcpu: VCPU(0), reason: .breakpoint)))
        effects.noteStop()
        try effects.resumeFromStop()
        #expect(try effects.withPausedUnlessStopped {})
        #expect(machine.state == .running && machine.violations == [])
    }

    @Test(
        "Nothing is done that a witness refuses to hear of",
        arguments: [
            FakeMachine.Action.paused, .inserted(site), .wroteData(GuestPhysicalAddress(0x1000), [1]),
        ])
    func refusedByWitness(action: FakeMachine.Action) throws {
        let (machine, effects) = try Self.controlled()
        machine.failures[.announce] = [.guardianLost]
        let thrown = Self.error { () throws(HypervisorError) in
            switch action {
            case .paused: try effects.withPaused {}
            case .inserted(let site): try effects.insert(site)
            default: try effects.writeData([1], at: GuestPhysicalAddress(0x1000))
            }
        }
        #expect(thrown == .guardianLost && machine.actions == [] && machine.state == .running)
        #expect(effects.sites.isEmpty)
    }

    @Test("Every witness hears of an effect before it happens, of a removal when it has")
    func order() throws {
        let (machine, effects) = try Self.controlled()
        let vcpu = VCPU(1)
        let caller = HeldCaller(slot: 2, registers: Registers())
        let place = GuestPhysicalAddress(0x2000)
        var moved = Registers()
        moved.rip = 7
        try effects.withPaused { () throws(HypervisorError) in
            machine.clearLog()
            try effects.insert(Self.site)
            try effects.setRegisters(of: vcpu, from: Registers(), to: moved)
            try effects.writeCode([1, 2, 3], at: place)
            try effects.writeData([4], at: place)
            try effects.noteHandler(nil)
            try effects.noteHold(caller)
            try effects.noteRelease(slot: 2)
            try effects.remove(Self.site)
            #expect(
                machine.log == [
                    .announced(.insert(Self.site)), .inserted(Self.site),
                    .announced(.setRegisters(vcpu)), .wroteRegisters(vcpu, moved),
                    .announced(.writeCode(place, count: 3)), .wroteCode(place, [1, 2, 3]),
                    .announced(.writeData(place, count: 1)), .wroteData(place, [4]),
                    .announced(.handler(nil)), .announced(.hold(caller)), .announced(.release(slot: 2)),
                    .removed(Self.site), .announced(.remove(Self.site)),
                ])
        }
        #expect(machine.ram.load(UInt32.self, at: 0x2000) == 0x0003_0204)
        let counts = effects.counts
        #expect(counts.registerWrites == 1 && counts.codeBytesWritten == 3 && counts.dataBytesWritten == 1)
    }

    @Test("Data are written without a stop where that can be, and in one where it cannot", arguments: [true, false])
    func dataWhileRunning(canBe: Bool) throws {
        let (machine, effects) = try Self.controlled()
        machine.writesDataWhileRunning = canBe
        try effects.writeData([7], at: GuestPhysicalAddress(0x2000))
        #expect(machine.ram.load(UInt8.self, at: 0x2000) == 7)
        #expect(machine.actions.contains(.paused) == !canBe && machine.actions.contains(.resumed) == !canBe)
        #expect(machine.state == .running && machine.violations == [])
    }

    @Test("Without its witnesses everything goes on as before, unannounced")
    func abandoned() throws {
        let (machine, effects) = try Self.controlled()
        effects.abandonWitnesses()
        try effects.withPaused { () throws(HypervisorError) in try effects.insert(Self.site) }
        #expect(machine.hasAbandonedWitness && machine.announcements == [])
        #expect(machine.actions == [.paused, .inserted(Self.site), .resumed])
    }

    @Test("A second witness hears the same")
    func twoWitnesses() throws {
        let (machine, effects) = try Self.controlled()
        effects.witnesses.append(machine.makeWitness())
        try effects.noteRelease(slot: 1)
        #expect(machine.announcements == [.release(slot: 1), .release(slot: 1)])
    }

    @Test("A site is set once and removed once, however often that is asked for")
    func sitesOnce() throws {
        let (machine, effects) = try Self.controlled()
        try effects.withPaused { () throws(HypervisorError) in
            try effects.insert(Self.site)
            try effects.insert(Self.site)
            try effects.remove(Self.site)
            try effects.remove(Self.site)
        }
        #expect(machine.actions == [.paused, .inserted(Self.site), .removed(Self.site), .resumed])
        #expect(machine.violations == [])
    }

    @Test("A breakpoint that cannot be set is not taken for set; one that cannot be removed stays known")
    func siteFailures() throws {
        let (machine, effects) = try Self.controlled()
        try effects.withPaused { () throws(HypervisorError) in
            machine.failures = [.insert: [Self.failure], .remove: [Self.failure]]
            #expect(Self.error { () throws(HypervisorError) in try effects.insert(Self.site) } == Self.failure)
            #expect(effects.sites.isEmpty)
            try effects.insert(Self.site)
            #expect(Self.error { () throws(HypervisorError) in try effects.remove(Self.site) } == Self.failure)
            #expect(effects.sites == [Self.site])
            // Until it is gone, whoever watches must know of it.
            #expect(!machine.announcements.contains(.remove(Self.site)))
            try effects.removeAllSites()
        }
        #expect(effects.sites.isEmpty && machine.sites.isEmpty)
    }

    @Test("A step takes its breakpoint out and puts it back, also where the step fails")
    func stepOver() throws {
        let (machine, effects) = try Self.controlled()
        try effects.withPaused { () throws(HypervisorError) in
            try effects.insert(Self.site)
            machine.registers[1].rip = 0x1000
            machine.clearLog()
            try effects.stepOver(Self.site, on: VCPU(1))
            #expect(
                machine.log == [
                    .announced(.step(VCPU(1))), .removed(Self.site), .stepped(VCPU(1)), .inserted(Self.site),
                ])
            machine.failures[.step] = [Self.failure]
            let thrown = Self.error { () throws(HypervisorError) in try effects.stepOver(Self.site, on: VCPU(1)) }
            #expect(thrown == Self.failure)
        }
        #expect(machine.sites == [Self.site] && effects.sites == [Self.site])
        #expect(effects.counts.steps == 2 && machine.violations == [])
    }

    @Test("A stop that a breakpoint caused is resumed, and announced")
    func resumeFromStop() throws {
        let (machine, effects) = try Self.controlled()
        _ = machine.stop(0, .breakpoint)
        effects.noteStop()
        try effects.resumeFromStop()
        #expect(machine.announcements == [.resume] && machine.actions == [.resumed])
        #expect(effects.counts.breakpointStops == 1 && machine.violations == [])
    }

    @Test("A resumption is still known as owed while it has not happened: who dies between is taken over from")
    func resumeIsAnnouncedAfterwards() throws {
        let (machine, effects) = try Self.controlled()
        machine.failures[.resume] = [Self.failure]
        _ = Self.error { () throws(HypervisorError) in try effects.withPaused {} }
        #expect(machine.state == .paused)
        #expect(machine.announcements.last == .pause)
    }
}
