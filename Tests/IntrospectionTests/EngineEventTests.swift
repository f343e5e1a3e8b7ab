import HypervisorInterface
import Introspection
import PowerTransitions
import TestSupport
import Testing
import WindowsGuest
import X86

@Suite("The engine's turns") struct EngineEventTests {
    static func call(_ guest: FakeGuest) -> Registers { guest.call(5, 6) }

    static let reset: @Sendable (FakeMachine) -> MachineEvent? = { _ in .host(.reset(byGuest: true)) }

    @Test("A refused request is seen through from entry to return, and the guest runs on after each stop")
    func refused() {
        let run = EngineRun()
        let counts = run.run([run.entry(Self.call), run.exit(Self.call, status: 0xc000_0001)])
        #expect(run.events == ["attached", "requested 1 reboot", "outcome 1 refused", "detached"])
        #expect(counts.entries == 1 && counts.returns == 1)
        #expect(run.machine.state == .running && run.isClean && run.detachment?.calls == counts)
        #expect(run.detachment?.effects.breakpointStops == 2)
    }

    @Test("Every vCPU that has arrived is looked at in one stop")
    func twoAtOnce() {
        let run = EngineRun(FakeGuest(vcpus: 2))
        let counts = run.run([
            { [guest = run.guest] machine in
                machine.registers[1] = guest.call(4, 6, thread: 1, vcpu: 1)
                return machine.stop(0, at: guest.call(5, 6, thread: 0, vcpu: 0))
            }
        ])
        #expect(run.events == ["attached", "requested 1 reboot", "requested 2 shutdown", "detached"])
        #expect(counts.entries == 2 && run.isClean)
        #expect(run.machine.registers.allSatisfy { $0.rip != run.guest.entry.rawValue })
    }

    @Test("A stop for no reason is resumed, and counts nothing")
    func spurious() {
        let run = EngineRun()
        let counts = run.run([{ $0.stop(0, .breakpoint) }])
        #expect(counts.entries == 0 && run.machine.state == .running && run.isClean)
    }

    @Test("A reset removes every breakpoint; the new kernel is armed, and numbers and counts go on")
    func reset() {
        let run = EngineRun()
        var sitesAfterReset = -1
        let counts = run.run([
            run.entry(Self.call), Self.reset,
            { machine in
                // The engine has attached to the next boot.
                sitesAfterReset = machine.sites.count
                return nil
            },
            run.entry(Self.call), run.exit(Self.call, status: 0xc000_0001),
        ])
        #expect(
            run.events == [
                "attached", "requested 1 reboot", "outcome 1 reset", "attached", "requested 2 reboot",
                "outcome 2 refused", "detached",
            ])
        // Only the entry: the first call's watch is gone.
        #expect(sitesAfterReset == 1)
        #expect(counts.entries == 2 && counts.returns == 1 && run.isClean)
    }

    @Test("A firmware's further resets on its way up are no events of their own")
    func debounced() {
        let run = EngineRun()
        let tables = run.machine.tables
        _ = run.run([
            run.entry(Self.call),
            { machine in
                machine.tables[0].control.cr0 = 0x10
                return .host(.reset(byGuest: true))
            },
            { _ in .host(.reset(byGuest: true)) }, { _ in nil },
            { machine in
                machine.tables = tables
                return nil
            },
        ])
        #expect(
            run.events.filter { !$0.hasPrefix("waiting") } == [
                "attached", "requested 1 reboot", "outcome 1 reset", "attached", "detached",
            ])
        #expect(run.isClean)
    }

    @Test("A reset by the host is unannounced, and the guest is armed again")
    func hostReset() {
        let run = EngineRun()
        _ = run.run([{ _ in .host(.reset(byGuest: false)) }])
        #expect(run.events == ["attached", "unannounced reset(byGuest: false)", "attached", "detached"])
        #expect(run.isClean)
    }

    @Test("After a reset the guest may take longer to come up than was first waited for")
    func patientAfterReset() {
        let run = EngineRun()
        run.options.wait = .zero
        let tables = run.machine.tables
        _ = run.run([
            { machine in
                machine.tables[0].control.cr0 = 0x10
                return .host(.reset(byGuest: true))
            },
            { _ in nil },
            { machine in
                machine.tables = tables
                return nil
            },
        ])
        #expect(run.error == nil && run.events.suffix(2) == ["attached", "detached"])
    }

    @Test("A held caller is let out before Vigil leaves, and nothing of the handler stays")
    func leavesWithHeldCaller() throws {
        let run = EngineRun()
        run.options.guardOptions = PowerGuardOptions(hold: .seconds(3600))
        let before = Array(run.guest.ram.bytes)
        var isInHandler = false
        var call = Registers()
        _ = run.run([
            { [guest = run.guest] machine in
                call = guest.call(4, 6)
                return machine.stop(0, at: call)
            },
            { machine in
                isInHandler = machine.registers[0].rip != call.rip
                return .interrupted
            },
            // Its byte is 0 now: it comes back to the entry.
            { machine in machine.stop(0, at: call) },
        ])
        #expect(isInHandler)
        #expect(run.events == ["attached", "requested 1 shutdown", "held 1", "released 1 leaving", "detached"])
        #expect(run.detachment?.callersLeft == 0 && run.detachment?.openTransitions == 1)
        #expect(run.isClean && run.machine.state == .running)
        // The caller's stack and thread are the test's own doing.
        _ = run.guest.call(4, 6)
        let after = Array(run.guest.ram.bytes)
        let changed = zip(before, after).enumerated().filter { $0.element.0 != $0.element.1 }.map(\.offset)
        let slack = try KernelSlack.find(512, in: run.guest.locateKernel()).address
        let physical = Int(try run.guest.locateKernel().memory.translate(slack).physical.rawValue)
        #expect(!changed.contains { $0 >= physical && $0 < physical + 4096 - physical % 4096 })
    }

    @Test("A caller that does not come out in time is said to be left, its byte cleared and the breakpoints gone")
    func callerLeft() {
        let run = EngineRun()
        run.options.guardOptions = PowerGuardOptions(hold: .seconds(3600))
        _ = run.run([run.entry(Self.call), { _ in .interrupted }, { _ in nil }])
        #expect(run.detachment?.callersLeft == 1 && run.isClean)
        guard
            case .wroteData(_, [0])? = run.machine.actions.last(where: {
                if case .wroteData = $0 { true } else { false }
            })
        else {
            Issue.record("its byte was not cleared")
            return
        }
    }

    @Test("A reset while callers are let out leaves none of them")
    func resetWhileLeaving() {
        let run = EngineRun()
        run.options.guardOptions = PowerGuardOptions(hold: .seconds(3600))
        _ = run.run([run.entry(Self.call), { _ in .interrupted }, Self.reset, { _ in nil }])
        #expect(run.events.contains("outcome 1 reset"))
        #expect(run.detachment?.callersLeft == 0 && run.isClean)
    }

    @Test("A guest that stands when Vigil leaves does not keep it waiting for held callers")
    func standsWhileLeaving() {
        let run = EngineRun()
        run.options.guardOptions = PowerGuardOptions(hold: .seconds(3600))
        _ = run.run([
            run.entry(Self.call),
            { machine in
                machine.become(.paused)
                return .host(.stoppedByOperator)
            },
            { _ in .interrupted },
        ])
        #expect(run.detachment?.callersLeft == 1 && run.machine.state == .paused && run.isClean)
    }

    @Test("A machine that powered off without a word ends what was requested")
    func endsSilently() {
        let run = EngineRun()
        _ = run.run([
            run.entry { $0.call(4, 6) },
            { machine in
                machine.become(.poweredOff)
                return .gone(reason: "over")
            },
        ])
        #expect(run.events == ["attached", "requested 1 shutdown", "outcome 1 powered-off", "detached"])
        #expect(run.detachment?.openTransitions == 0)
    }

    @Test("Never more than four breakpoints stand, whatever calls come")
    func fourBreakpoints() {
        let run = EngineRun()
        let counts = run.run((0..<6).map { index in run.entry { $0.call(5, 6, thread: index) } })
        #expect(counts.entries == 6 && counts.unwatched == 3)
        #expect(run.machine.mostSites == 4 && run.isClean && run.detachment?.openTransitions == 6)
    }
}
