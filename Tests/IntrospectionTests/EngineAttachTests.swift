import HypervisorInterface
import Introspection
import TestSupport
import Testing
import WindowsGuest

@Suite("Attaching and leaving") struct EngineAttachTests {
    @Test("A running guest is armed in one stop, and left running with nothing armed")
    func attaches() throws {
        let run = EngineRun()
        let counts = run.run()
        #expect(run.events == ["attached", "detached"] && run.error == nil)
        #expect(run.machine.state == .running && run.isClean && run.machine.mostSites == 1)
        let attachment = try #require(run.attachments.first)
        #expect(attachment.powerFunction.address == run.guest.entry && attachment.runState == .running)
        #expect(attachment.kernel.base.rawValue == run.guest.kernel.base && attachment.machine.name == "fake")
        let detachment = try #require(run.detachment)
        #expect(detachment.reason == .asked && detachment.callersLeft == 0 && detachment.openTransitions == 0)
        // One pause to arm, one to leave.
        #expect(detachment.effects.pauses == 2 && detachment.effects.codeBytesWritten == 0)
        #expect(counts.entries == 0)
    }

    @Test("The guest's memory is the same before and after")
    func memoryUnchanged() {
        let run = EngineRun()
        let before = Array(run.guest.ram.bytes)
        _ = run.run()
        #expect(run.events.first == "attached")
        #expect(Array(run.guest.ram.bytes) == before)
    }

    @Test(
        "A guest that stands is armed, and left, standing as it was found",
        arguments: [
            RunState.paused, .suspended, .notStarted, .guestPanicked,
        ])
    func standing(state: RunState) {
        let run = EngineRun()
        run.machine.become(state)
        _ = run.run()
        #expect(run.events == ["attached", "detached"])
        #expect(run.machine.state == state && run.isClean)
        #expect(run.attachments.first?.runState == state)
        #expect(!run.machine.actions.contains(.resumed))
    }

    @Test("A guest that goes to sleep while armed is left asleep")
    func fallsAsleep() {
        let run = EngineRun()
        _ = run.run([
            { machine in
                machine.become(.suspended)
                return .host(.suspended)
            }
        ])
        #expect(run.events == ["attached", "unannounced suspended", "detached"])
        #expect(run.machine.state == .suspended && run.isClean)
    }

    @Test("A guest that is still booting is waited for, each new reason said once, and armed when it is there")
    func waits() {
        let run = EngineRun()
        let tables = run.machine.tables
        run.machine.tables[0].control.cr0 = 0x10
        _ = run.run([
            { _ in nil }, { _ in nil },
            { machine in
                machine.tables[0].control = tables[0].control
                machine.tables[0].control.efer = 0
                return nil
            },
            { _ in nil },
            { machine in
                machine.tables = tables
                return nil
            },
        ])
        #expect(run.events.count == 4 && run.events.suffix(2) == ["attached", "detached"])
        #expect(run.events[0].contains("paging") && run.events[1].contains("64-bit"))
        #expect(run.isClean)
    }

    @Test("Interrupted while it waits, nothing was ever touched")
    func interruptedWhileWaiting() {
        let run = EngineRun()
        run.machine.tables[0].control.cr0 = 0x10
        _ = run.run([{ _ in nil }])
        #expect(run.events.last == "detached" && run.detachment?.reason == .asked)
        #expect(run.machine.log == [] && run.isClean)
    }

    @Test("When the wait is over the last reason is the error, and nothing was touched")
    func gaveUp() throws {
        let run = EngineRun()
        run.options.wait = .zero
        run.machine.tables[0].control.cr0 = 0x10
        _ = run.run()
        guard case .discovery(.pagingOff) = try #require(run.error) else {
            Issue.record("\(run.error!)")
            return
        }
        #expect(run.machine.log == [] && run.isClean)
    }

    @Test("What is no Windows is given up without waiting for the whole time")
    func stranger() throws {
        var options = SyntheticKernelOptions()
        options.moduleName = "other.exe"
        let run = EngineRun(FakeGuest(options))
        run.options.wait = .seconds(3600)
        run.options.patienceWithStrangers = .zero
        _ = run.run([{ _ in nil }, { _ in nil }, { _ in nil }])
        guard case .discovery(let problem) = try #require(run.error) else {
            Issue.record("\(run.error!)")
            return
        }
        #expect(!problem.canBeRetried && run.machine.log == [])
    }

    @Test("A machine that ends while it is waited for is reported, not thrown")
    func goneWhileWaiting() {
        let run = EngineRun()
        run.machine.tables[0].control.cr0 = 0x10
        _ = run.run([{ _ in .gone(reason: "over") }])
        #expect(run.detachment?.reason == .machineLost("over") && run.error == nil)
    }

    @Test("A machine that ends while armed is reported, and nothing more is asked of it")
    func gone() {
        let run = EngineRun()
        _ = run.run([
            { machine in
                machine.become(.poweredOff)
                return .gone(reason: "over")
            }
        ])
        #expect(run.events == ["attached", "detached"] && run.detachment?.reason == .machineLost("over"))
        #expect(
            run.machine.actions.last == .closedControl
                && !run.machine.actions.contains { $0 == .removed(run.guest.entrySite) })
    }

    @Test("A machine that said it would end has ended, and is not lost")
    func poweredOff() {
        let run = EngineRun()
        _ = run.run([
            { machine in
                machine.become(.poweredOff)
                return .host(.poweredOff(byGuest: true))
            },
            { _ in .gone(reason: "over") },
        ])
        #expect(run.events == ["attached", "unannounced poweredOff(byGuest: true)", "detached"])
        #expect(run.detachment?.reason == .machineEnded && run.reason == .machineEnded)
    }

    @Test("A guardian that was lost is the error, and the guest is left in good order without it")
    func guardianLost() {
        let run = EngineRun()
        _ = run.run([
            { [guest = run.guest] machine in
                machine.failures = [.announce: Array(repeating: .guardianLost, count: 1000)]
                machine.lossOfControl = .guardianLost
                return machine.stop(0, at: guest.call())
            }
        ])
        #expect(run.error?.hypervisorError == .guardianLost && run.machine.hasAbandonedWitness)
        #expect(run.isClean && run.machine.state == .running)
    }

    @Test("After the guardian took over nothing more is done to the guest")
    func takenOver() {
        let run = EngineRun()
        var actions = 0
        _ = run.run([
            { [guest = run.guest] machine in
                machine.failures = [.announce: [.gone("closed")]]
                machine.lossOfControl = .takenOver
                actions = machine.actions.count
                return machine.stop(0, at: guest.call())
            }
        ])
        #expect(run.error?.hypervisorError == .takenOver)
        #expect(run.machine.actions.count == actions)
    }

    @Test("A busy debugger is an error, and the guest untouched")
    func busy() throws {
        let run = EngineRun()
        run.machine.failures = [.prepare: [.debuggerBusy(label: "gdb")]]
        _ = run.run()
        #expect(run.error?.hypervisorError == .debuggerBusy(label: "gdb"))
        #expect(run.events == [] && run.machine.log == [] && run.machine.state == .running)
    }

    @Test(
        "An error on the way ends in good order where that can still be done",
        arguments: [
            FakeMachine.Operation.step, .insert, .announce,
        ])
    func failsWhileArmed(operation: FakeMachine.Operation) {
        let run = EngineRun()
        let failure = HypervisorError.unsupported("made to fail")
        _ = run.run([
            { [guest = run.guest] machine in
                machine.failures = [operation: [failure]]
                return machine.stop(0, at: guest.call())
            }
        ])
        #expect(run.error?.hypervisorError == failure)
        #expect(run.machine.sites.isEmpty && !run.machine.isControlled)
    }

    @Test("After an error at a stop the guest runs on")
    func runsOnAfterError() {
        let run = EngineRun()
        _ = run.run([
            { [guest = run.guest] machine in
                machine.failures = [.step: [.unsupported("made to fail")]]
                return machine.stop(0, at: guest.call())
            }
        ])
        #expect(run.error != nil && run.isClean)
        #expect(run.machine.state == .running)
    }
}
