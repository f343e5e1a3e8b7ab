import Glibc
import HostProcesses
import HypervisorInterface
import Introspection
import PowerTransitions
import TestSupport
import Testing
import X86

@Suite("Commands that held callers wait for") struct EngineCommandTests {
    /// An engine whose requests' commands are fakes.
    final class Session {
        let run: EngineRun
        private(set) var commands: [FakeCommand] = []
        var startFailure: ProcessStartError?

        init(vcpus: Int = 1) {
            run = EngineRun(FakeGuest(vcpus: vcpus))
            run.options.guardOptions = PowerGuardOptions(holdUntilReleasedWithin: .seconds(3600))
            run.options.startHoldCommand = { [unowned self] id throws(ProcessStartError) in
                if let startFailure { throw startFailure }
                let command = FakeCommand(descriptor: 100 + Int32(id.number))
                commands.append(command)
                return command
            }
        }

        var machine: FakeMachine { run.machine }
        var call: Registers { run.guest.call(4, 6) }

        /// The request's caller comes back to the entry.
        func comesBack(_ machine: FakeMachine) -> MachineEvent? { machine.stop(0, at: call) }
    }

    @Test("The command starts when its caller is held and the guest runs on; its end ends the hold")
    func ends() {
        let session = Session()
        var running: (state: RunState, watched: [Int32])?
        _ = session.run.run([
            { session.comesBack($0) },
            { machine in
                running = (machine.state, machine.watchedDescriptors)
                session.commands[0].end = .exited(code: 0)
                return .descriptorReady(101)
            },
            { machine in
                #expect(machine.watchedDescriptors.isEmpty)
                return session.comesBack(machine)
            },
        ])
        #expect(running?.state == .running && running?.watched == [101])
        #expect(
            session.run.events == [
                "attached", "requested 1 shutdown", "command started 1", "command ended 1 exited(code: 0)", "held 1",
                "released 1 command-ended", "detached",
            ])
        #expect(session.commands.count == 1 && session.commands[0].signals.isEmpty && session.run.isClean)
    }

    @Test(
        "A command that fails ends the hold too, and is no success",
        arguments: [CommandEnd.exited(code: 3), .signalled(SIGSEGV)])
    func fails(_ end: CommandEnd) {
        let session = Session()
        _ = session.run.run([
            { session.comesBack($0) },
            { _ in
                session.commands[0].end = end
                return .descriptorReady(101)
            },
            { session.comesBack($0) },
        ])
        #expect(session.run.events.contains("released 1 command-failed") && session.run.isClean)
    }

    @Test("A command that cannot be started lets its caller go, and is not tried again")
    func notStarted() {
        let session = Session()
        session.startFailure = ProcessStartError("no more processes")
        _ = session.run.run([{ session.comesBack($0) }, { _ in nil }, { session.comesBack($0) }])
        #expect(
            session.run.events == [
                "attached", "requested 1 shutdown", "command ended 1 notStarted(reason: \"no more processes\")",
                "held 1", "released 1 command-failed", "detached",
            ])
    }

    @Test("Each of two callers has its own command, and waits for no other")
    func two() {
        let session = Session(vcpus: 2)
        let guest = session.run.guest
        var waiting: [Int32] = []
        _ = session.run.run([
            { machine in
                machine.registers[1] = guest.call(5, 6, thread: 1, vcpu: 1)
                return machine.stop(0, at: guest.call(4, 6, thread: 0, vcpu: 0))
            },
            { _ in
                session.commands[1].end = .exited(code: 0)
                return .descriptorReady(102)
            },
            { machine in
                waiting = machine.watchedDescriptors
                return machine.stop(1, at: guest.call(5, 6, thread: 1, vcpu: 1))
            },
        ])
        #expect(waiting == [101])
        #expect(session.run.events.contains("released 2 command-ended"))
        #expect(session.commands[0].signals == [SIGTERM], "Vigil left while it ran")
    }

    @Test("When Vigil leaves, a running command is told to end before the caller is waited for")
    func leaving() {
        let session = Session()
        _ = session.run.run([
            { session.comesBack($0) }, { _ in .interrupted },
            { machine in
                #expect(session.commands[0].signals == [SIGTERM])
                return session.comesBack(machine)
            },
        ])
        #expect(session.run.events.contains("command ended 1 signalled(15)"))
        #expect(session.run.events.contains("released 1 leaving"))
        #expect(session.run.events.last == "detached" && session.run.isClean)
    }

    @Test("After a reset nobody waits for the command any more")
    func reset() {
        let session = Session()
        _ = session.run.run([
            { session.comesBack($0) }, { _ in .host(.reset(byGuest: false)) },
            { _ in
                #expect(session.commands[0].signals == [SIGTERM])
                return nil
            },
        ])
        #expect(session.run.events.contains("command ended 1 signalled(15)"))
        #expect(!session.run.events.contains { $0.hasPrefix("released") } && session.run.isClean)
    }

    @Test("A machine that is gone takes its command with it")
    func gone() {
        let session = Session()
        _ = session.run.run([
            { session.comesBack($0) },
            { machine in
                machine.become(.poweredOff)
                return .gone(reason: "over")
            },
        ])
        #expect(session.commands[0].signals == [SIGTERM])
        #expect(session.run.events.suffix(2) == ["command ended 1 signalled(15)", "detached"])
    }

    @Test("No command runs for a caller that cannot be held")
    func notHeld() {
        let session = Session()
        _ = session.run.run([
            { machine in
                var call = session.call
                call.rflags &= ~0x200
                return machine.stop(0, at: call)
            }
        ])
        #expect(session.run.events == ["attached", "requested 1 shutdown", "not held 1", "detached"])
        #expect(session.commands.isEmpty)
    }
}
