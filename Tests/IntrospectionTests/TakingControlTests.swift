import GuestMemory
import HypervisorInterface
import TestSupport
import Testing

@Suite("Taking and giving up control") struct TakingControlTests {
    static let site = GuestEffectsTests.site
    static let failure = GuestEffectsTests.failure

    static func make(_ state: RunState = .running) -> (FakeMachine, GuestEffects) {
        let machine = FakeMachine(ram: SyntheticRAM(size: 1 << 16), state: state)
        return (machine, GuestEffects(machine: machine))
    }

    @Test("Taking control costs one stop, in which the first change is made")
    func running() throws {
        let (machine, effects) = Self.make()
        try effects.takeControl { () throws(HypervisorError) in try effects.insert(Self.site) }
        #expect(
            machine.log.prefix(3) == [.announced(.pause), .openedControl, .announced(.insert(Self.site))])
        #expect(machine.actions == [.openedControl, .inserted(Self.site), .resumed])
        #expect(machine.state == .running && effects.counts.pauses == 1 && effects.witnesses.count == 1)
        #expect(machine.violations == [])
    }

    @Test(
        "A machine that stands is left standing, and its stop is not announced as ours",
        arguments: [
            RunState.paused, .suspended, .notStarted, .stoppedByDebugger,
        ])
    func standing(state: RunState) throws {
        let (machine, effects) = Self.make(state)
        try effects.takeControl { () throws(HypervisorError) in try effects.insert(Self.site) }
        #expect(machine.state == state && effects.counts.pauses == 0)
        #expect(machine.announcements == [.insert(Self.site)])
        #expect(machine.violations == [])
    }

    @Test(
        "A machine that others start meanwhile, and that is stopped by what is done to it, runs on",
        arguments: [RunState.paused, .suspended])
    func startedByOthers(state: RunState) throws {
        let (machine, effects) = Self.make(state)
        try effects.takeControl { () throws(HypervisorError) in machine.startUnderVigil() }
        #expect(machine.state == .running && machine.actions == [.openedControl, .resumed])
        machine.become(state)
        #expect(throws: Self.failure) {
            try effects.withPaused { () throws(HypervisorError) in
                machine.startUnderVigil()
                throw Self.failure
            }
        }
        #expect(machine.state == .running)
        machine.become(state)
        #expect(try effects.withPausedUnlessStopped { () throws(HypervisorError) in machine.startUnderVigil() })
        #expect(machine.state == .running && effects.counts.pauses == 0 && machine.violations == [])
    }

    @Test("Within a stop of ours it stands until the end of that")
    func startedByOthersInAStop() throws {
        let (machine, effects) = Self.make()
        try effects.withPaused { () throws(HypervisorError) in
            try effects.withPaused { () throws(HypervisorError) in machine.startUnderVigil() }
            #expect(machine.state == .paused)
        }
        #expect(machine.state == .running)
        _ = machine.stop(0, .breakpoint)
        effects.noteStop()
        try effects.withPaused { () throws(HypervisorError) in machine.startUnderVigil() }
        #expect(machine.state == .paused)
        try effects.resumeFromStop()
        #expect(machine.state == .running && machine.violations == [])
    }

    @Test("Where the guardian took over meanwhile, that is the reason, whatever failed of it")
    func takenOver() {
        let (machine, effects) = Self.make()
        machine.failures[.open] = [.gone("the connection was closed")]
        machine.lossOfControl = .takenOver
        let thrown = GuestEffectsTests.error { () throws(HypervisorError) in try effects.takeControl {} }
        #expect(thrown == .takenOver && machine.hasAbandonedWitness)
    }

    @Test("Where preparing fails nothing has happened")
    func cannotPrepare() {
        let (machine, effects) = Self.make()
        machine.failures[.prepare] = [.debuggerBusy(label: "gdb")]
        let thrown = GuestEffectsTests.error { () throws(HypervisorError) in try effects.takeControl {} }
        #expect(thrown == .debuggerBusy(label: "gdb"))
        #expect(machine.log == [] && machine.state == .running && effects.witnesses.isEmpty)
    }

    @Test("Where the first change fails the machine runs on, and the error is the change's")
    func cannotChange() {
        let (machine, effects) = Self.make()
        let thrown = GuestEffectsTests.error { () throws(HypervisorError) in
            try effects.takeControl { () throws(HypervisorError) in throw Self.failure }
        }
        #expect(thrown == Self.failure && machine.state == .running)
    }

    @Test("Where opening fails the error is the machine's, and no witness is told of anything more")
    func cannotOpen() throws {
        let (machine, effects) = Self.make()
        machine.failures[.open] = [Self.failure]
        let thrown = GuestEffectsTests.error { () throws(HypervisorError) in try effects.takeControl {} }
        #expect(thrown == Self.failure && effects.witnesses.isEmpty)
        #expect(machine.actions == [])
    }

    @Test(
        "Giving control up closes it, dismisses the witnesses and changes nothing of the run state",
        arguments: [
            RunState.running, .paused, .suspended,
        ])
    func givesUp(state: RunState) throws {
        let (machine, effects) = Self.make()
        try effects.takeControl {}
        if !state.isRunning { machine.become(state) }
        machine.clearLog()
        try effects.giveUpControl()
        #expect(machine.log == [.closedControl] && machine.state == state && !machine.isControlled)
        #expect(effects.witnesses.isEmpty && effects.sites.isEmpty)
        #expect(machine.violations == [])
    }
}
