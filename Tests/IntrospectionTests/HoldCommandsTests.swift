import Glibc
import HostProcesses
import HypervisorInterface
import PowerTransitions
import TestSupport
import Testing

@testable import Introspection

@Suite("Ending commands that nobody waits for") struct HoldCommandsTests {
    /// Commands whose clock is the test's.
    final class Host {
        var now = ContinuousClock.now
        private(set) var events: [String] = []
        private(set) var commands: HoldCommands!

        init(_ start: @escaping HoldCommandStart) {
            commands = HoldCommands(
                start: start, now: { [unowned self] in now }, report: { [unowned self] in note($0) })
        }

        private func note(_ event: EngineEvent) {
            if case .commandEnded(let id, let end, _) = event { events.append("\(id.number) \(end)") }
        }
    }

    private let request = RequestID(1)

    @Test("A command has two seconds from SIGTERM to SIGKILL")
    func grace() {
        let fake = FakeCommand(descriptor: 5)
        fake.onSignal = { command, signal in if signal == SIGKILL { command.end = .signalled(signal) } }
        let host = Host { _ in fake }
        _ = host.commands.follow([request])
        #expect(host.commands.descriptors == [5] && host.commands.nextDeadline == nil)
        _ = host.commands.follow([])
        #expect(fake.signals == [SIGTERM] && host.commands.nextDeadline == host.now + .seconds(2))
        host.now += .seconds(2) - .nanoseconds(1)
        _ = host.commands.follow([])
        #expect(fake.signals == [SIGTERM])
        host.now += .nanoseconds(1)
        _ = host.commands.follow([])
        #expect(fake.signals == [SIGTERM, SIGKILL])
        _ = host.commands.follow([])
        #expect(host.events == ["1 signalled(9)"] && host.commands.descriptors.isEmpty)
        #expect(host.commands.nextDeadline == nil)
    }

    @Test("What a command that was told to end leaves behind has the rest of the two seconds")
    func leftovers() {
        let fake = FakeCommand(descriptor: 5)
        fake.hasLeftovers = true
        let host = Host { _ in fake }
        _ = host.commands.follow([request])
        _ = host.commands.follow([])
        _ = host.commands.follow([])
        #expect(host.events == ["1 signalled(15)"] && host.commands.descriptors.isEmpty)
        host.now += .seconds(2)
        _ = host.commands.follow([])
        #expect(fake.signals == [SIGTERM, SIGKILL] && host.commands.nextDeadline == nil)
    }

    @Test("What a command leaves behind that ended by itself is left alone")
    func background() {
        let fake = FakeCommand(descriptor: 5)
        let host = Host { _ in fake }
        _ = host.commands.follow([request])
        (fake.end, fake.hasLeftovers) = (.exited(code: 0), true)
        #expect(host.commands.follow([request]).map(\.reason) == [.commandEnded])
        host.commands.endAll()
        #expect(fake.signals.isEmpty)
    }

    @Test("A real command that ignores SIGTERM is killed, with the process that it started")
    func realGroup() throws {
        let ready = NamedPipe()
        let host = Host { _ throws(ProcessStartError) in
            try ShellCommand(
                "trap '' TERM; sleep 600 & echo $! > \(ready.path); wait", input: "",
                environment: ["PATH": "/usr/bin:/bin"])
        }
        _ = host.commands.follow([request])
        let child = try #require(ready.readLine().flatMap { Int32($0) })
        _ = host.commands.follow([])
        host.now += .seconds(2)
        _ = host.commands.follow([])
        #expect(processEnds(child))
        host.commands.endAll()
        #expect(host.events == ["1 signalled(9)"])
    }

    @Test("Ending all of them waits for their ends, and reports each")
    func endAll() throws {
        let ready = NamedPipe()
        let host = Host { _ throws(ProcessStartError) in
            try ShellCommand(
                "trap 'exit 7' TERM; echo > \(ready.path); while :; do sleep 0.01; done", input: "",
                environment: ["PATH": "/usr/bin:/bin"])
        }
        _ = host.commands.follow([request, RequestID(2)])
        #expect(ready.readLine() != nil && ready.readLine() != nil)
        host.commands.endAll()
        #expect(host.events.sorted() == ["1 exited(code: 7)", "2 exited(code: 7)"])
    }
}
