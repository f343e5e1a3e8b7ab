import GuestMemory
import HypervisorInterface
import Introspection
import TestSupport
import Testing
import X86

@Suite("What a machine lacks after a wake") struct WakeCheckTests {
    /// The machine wakes: its vCPUs begin in the firmware.
    static let wake: @Sendable (FakeMachine) -> MachineEvent? = { machine in
        machine.tables[0].control.cr0 &= ~0x8000_0000
        machine.tables[0].control.efer = 0
        return .host(.wokeUp)
    }

    @Test("It is asked for when the kernel is back, and said once for each wake")
    func said() {
        let run = EngineRun()
        let machine = run.machine
        let tables = machine.tables
        machine.lossAfterWake = "something is gone"
        var looks: [Int] = []
        let back: (FakeMachine) -> MachineEvent? = {
            looks.append($0.looksAfterWake)
            $0.tables = tables
            return nil
        }
        let wait: (FakeMachine) -> MachineEvent? = {
            looks.append($0.looksAfterWake)
            return nil
        }
        _ = run.run([wait, Self.wake, wait, back, wait, wait, Self.wake, back, wait])
        #expect(looks == [0, 0, 0, 1, 1, 1, 2])
        #expect(run.warnings == ["something is gone", "something is gone"])
        #expect(run.isClean)
    }

    @Test("A firmware in long mode is no kernel")
    func firmware() {
        let run = EngineRun()
        let tables = run.machine.tables
        run.machine.lossAfterWake = "something is gone"
        _ = run.run([
            Self.wake,
            { machine in
                machine.tables = tables
                machine.tables[0].idtBase = GuestVirtualAddress(0x7f00_0000)
                return nil
            }, { _ in nil },
        ])
        #expect(run.machine.looksAfterWake == 0 && run.warnings.isEmpty)
    }

    @Test("Nothing is said where nothing is missing, and nothing is asked where the guest went down again")
    func silent() {
        let whole = EngineRun()
        _ = whole.run([{ _ in .host(.wokeUp) }, { _ in nil }])
        #expect(whole.machine.looksAfterWake == 1 && whole.warnings.isEmpty)

        for event in [HostEvent.suspended, .reset(byGuest: true), .poweredOff(byGuest: true), .guestPanicked] {
            let run = EngineRun()
            let tables = run.machine.tables
            run.machine.lossAfterWake = "something is gone"
            _ = run.run([
                Self.wake, { _ in .host(event) },
                { machine in
                    machine.tables = tables
                    return nil
                }, { _ in nil },
            ])
            #expect(run.machine.looksAfterWake == 0 && run.warnings.isEmpty, "\(event)")
        }
    }

    @Test("A machine that cannot be asked is not asked again, and the session goes on")
    func failing() {
        let run = EngineRun()
        _ = run.run([
            { machine in
                machine.failures[.tables] = [.timedOut(waitingFor: "QEMU to answer")]
                return .host(.wokeUp)
            }, { _ in nil }, { _ in nil },
        ])
        #expect(run.machine.looksAfterWake == 0 && run.warnings.isEmpty && run.error == nil && run.isClean)
    }
}
