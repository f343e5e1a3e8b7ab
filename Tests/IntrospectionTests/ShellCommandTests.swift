import Foundation
import Glibc
import HostProcesses
import HypervisorInterface
import Introspection
import TestSupport
import Testing

@Suite("Shell commands") struct ShellCommandTests {
    static func start(_ command: String, input: String = "", _ environment: [String: String] = [:]) throws
        -> ShellCommand
    {
        try ShellCommand(
            command, input: input, environment: environment.merging(["PATH": "/usr/bin:/bin"]) { value, _ in value })
    }

    /// The command's end, awaited by its descriptor.
    static func end(_ command: ShellCommand) -> CommandEnd? {
        var entry = pollfd(fd: command.endDescriptor, events: Int16(POLLIN), revents: 0)
        #expect(poll(&entry, 1, 60_000) == 1)
        return command.end
    }

    @Test("Its standard input is the text, and then its end")
    func input() throws {
        let file = NSTemporaryDirectory() + "vigil-test-\(UUID().uuidString)"
        defer { unlink(file) }
        let text = "{\"event\":\"x\",\"name\":\"\u{e4}\"}\n"
        #expect(try Self.end(Self.start("cat > \(file)", input: text)) == .exited(code: 0))
        #expect(try String(contentsOfFile: file, encoding: .utf8) == text)
    }

    @Test("A command that does not read its input is none the worse")
    func unread() throws {
        #expect(try Self.end(Self.start("exec 0<&-; true", input: "text\n")) == .exited(code: 0))
    }

    @Test("Its environment is what was given")
    func environment() throws {
        let pipe = NamedPipe()
        let command = try Self.start("echo \"$VIGIL_REQUEST-$HOME\" > \(pipe.path)", ["VIGIL_REQUEST": "4"])
        #expect(pipe.readLine() == "4-")
        #expect(Self.end(command) == .exited(code: 0))
    }

    @Test("Exit codes and signals are told apart; a missing program is the shell's 127")
    func ends() throws {
        #expect(try Self.end(Self.start("exit 0")) == .exited(code: 0))
        #expect(try Self.end(Self.start("exit 255")) == .exited(code: 255))
        #expect(try Self.end(Self.start("kill -9 $$")) == .signalled(SIGKILL))
        #expect(try Self.end(Self.start("/nowhere/program 2> /dev/null")) == .exited(code: 127))
    }

    @Test("SIGPIPE ends what writes to nobody, as in any shell")
    func brokenPipe() throws {
        signal(SIGPIPE, SIG_IGN)
        #expect(try Self.end(Self.start("yes | head -n 1 > /dev/null")) == .exited(code: 0))
        #expect(try Self.end(Self.start("sh -c 'kill -13 $$'; test $? -eq 141")) == .exited(code: 0))
    }

    @Test("A shell that is not there, or a text that no pipe holds, is an error in words")
    func notStarted() {
        #expect(throws: ProcessStartError("cannot start /nowhere/sh: No such file or directory")) {
            try ShellCommand("true", input: "", environment: [:], shell: "/nowhere/sh")
        }
        #expect(throws: ProcessStartError("its input of 100000 bytes does not fit into a pipe")) {
            try ShellCommand("true", input: String(repeating: "x", count: 100_000), environment: [:])
        }
    }

    @Test("A signal reaches what the command started")
    func group() throws {
        let pipe = NamedPipe()
        let command = try Self.start("sleep 600 & echo $! > \(pipe.path); wait")
        let child = try #require(pipe.readLine().flatMap { Int32($0) })
        #expect(command.end == nil && getpgid(child) == command.processID)
        command.send(SIGTERM)
        #expect(Self.end(command) == .signalled(SIGTERM))
        #expect(processEnds(child) && !command.hasLeftovers)
    }

    @Test("What it leaves in its group is seen until it ends, reaped or not")
    func leftovers() throws {
        let pipe = NamedPipe()
        let command = try Self.start("sleep 600 & echo $! > \(pipe.path)")
        let child = try #require(pipe.readLine().flatMap { Int32($0) })
        #expect(Self.end(command) == .exited(code: 0) && command.hasLeftovers)
        command.send(SIGKILL)
        #expect(processEnds(child) && !command.hasLeftovers)
    }
}
