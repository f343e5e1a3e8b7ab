import BundledGuest
import Foundation
import Glibc
import TestSupport
import Testing

extension Integration {
    /// `attach --run-before`: a host command runs while the caller of a transition is held.
    @Suite(.serialized)
    struct RunBeforeTests {
        /// A guest whose driver refuses, and a Vigil that runs a command for each request.
        private func attach(
            _ command: String, _ options: String...
        ) throws -> (guest: BundledGuestMachine, vigil: VigilProcess) {
            let guest = try BundledGuestMachine.ready()
            try guest.console.run("refuse on")
            let vigil = try VigilProcess(
                ["attach", guest.target, "--format", "json", "--run-before", command] + options)
            _ = try vigil.event("attached")
            return (guest, vigil)
        }

        private func expectRefused(_ call: Int, _ guest: BundledGuestMachine) throws {
            #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3)
        }

        /// Ends the session, and shows that nothing is left in the guest.
        /// - Returns: all of its events.
        private func leave(_ vigil: VigilProcess, _ guest: BundledGuestMachine) throws -> [VigilEvent] {
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0, "\(vigil.errorText)")
            try guest.expectNothingLeft()
            return vigil.outputText.split(separator: "\n").compactMap { VigilEvent(String($0)) }
        }

        private func first(_ name: String, _ events: [VigilEvent]) throws -> VigilEvent {
            try #require(events.first { $0.name == name }, "no \(name) in \(events)")
        }

        @Test("The command gets the event, the guest runs on and can be dumped, and the caller goes when it ends")
        func commandEnds() throws {
            let (ready, go) = (NamedPipe(), NamedPipe())
            let file = NSTemporaryDirectory() + "vigil-test-\(UUID().uuidString)"
            defer { unlink(file) }
            let (guest, vigil) = try attach(
                "cat > \(file); echo $VIGIL_REQUEST $VIGIL_TRANSITION $VIGIL_QEMU_PID > \(ready.path); "
                    + "read go < \(go.path); echo noise; echo more >&2")
            let call = try guest.console.start("power user 5 6 0")
            let request = try vigil.event("transition-requested")
            _ = try vigil.event("command-started")
            #expect(ready.readLine() == "1 reboot \(guest.process.processID)")
            #expect(try String(contentsOfFile: file, encoding: .utf8) == request.text + "\n")

            // Other threads of the guest run, and an operator can take its memory.
            #expect(try guest.console.run("work 100").result == "ok calls=100")
            let during = try guest.console.run("counts")
            #expect(try Operator(path: guest.operatorSocket).memory().count == 128 << 20)
            #expect(try guest.console.run("counts") == during)
            #expect(try guest.console.replyIfThere(to: call) == nil)

            go.write(line: "go")
            let end = try vigil.event("command-ended")
            #expect(end.int("request") == 1 && end.int("exitCode") == 0)
            #expect(end.members["signal"] is NSNull && end.members["reason"] is NSNull)
            #expect(try vigil.event("released").string("reason") == "command-ended")
            try expectRefused(call, guest)
            let after = try guest.console.run("counts")
            #expect(try #require(after["entries"]) > #require(during["entries"]))

            let events = try leave(vigil, guest)
            #expect(
                events.map(\.name) == [
                    "attached", "transition-requested", "command-started", "command-ended", "held", "released",
                    "outcome", "detached",
                ])
            #expect(vigil.outputText.split(separator: "\n").count == events.count, "all of the output is JSON")
            #expect(vigil.errorText.contains("noise\nmore\n"))
        }

        @Test("A command that fails lets the caller go, and that is said")
        func commandFails() throws {
            let (guest, vigil) = try attach("test $VIGIL_REQUEST = 1 && exit 3; kill -9 $$")
            try guest.console.run("power user 5 6 0")
            #expect(try vigil.event("command-ended").int("exitCode") == 3)
            #expect(try vigil.event("released").string("reason") == "command-failed")
            try guest.console.run("power kernel 5 6 0")
            let end = try vigil.event("command-ended")
            #expect(end.int("signal") == 9 && end.members["exitCode"] is NSNull)
            #expect(try vigil.event("released").string("reason") == "command-failed")
            _ = try leave(vigil, guest)
        }

        @Test("At the limit the caller goes, and the command and what it started are ended")
        func limit() throws {
            let pids = NamedPipe()
            let (guest, vigil) = try attach(
                "sleep 600 & echo $! > \(pids.path); wait", "--hold-limit", "300")
            let call = try guest.console.start("power user 5 6 0")
            let shell = try #require(vigil.event("command-started").int("pid"))
            let child = try #require(pids.readLine().flatMap { Int32($0) })
            try expectRefused(call, guest)
            #expect(processEnds(Int32(shell)) && processEnds(child))
            let events = try leave(vigil, guest)
            #expect(try first("released", events).string("reason") == "hold-limit")
            #expect(try first("command-ended", events).int("signal") == 15)
        }

        @Test("Two callers at once have a command each, and each goes with its own")
        func twoCallers() throws {
            let (ready, first, second) = (NamedPipe(), NamedPipe(), NamedPipe())
            let (guest, vigil) = try attach(
                "echo $VIGIL_REQUEST > \(ready.path); "
                    + "if test $VIGIL_REQUEST = 1; then read go < \(first.path); else read go < \(second.path); fi")
            let calls = try (0..<2).map { _ in try guest.console.start("power kernel 5 6 0") }
            #expect(Set([ready.readLine(), ready.readLine()]) == ["1", "2"])
            second.write(line: "go")
            #expect(try vigil.event("released").int("request") == 2)
            first.write(line: "go")
            #expect(try vigil.event("released").int("request") == 1)
            for call in calls { try expectRefused(call, guest) }
            _ = try leave(vigil, guest)
        }

        @Test("Ctrl-C while a command runs ends the command and lets the caller go")
        func leaving() throws {
            let pids = NamedPipe()
            let (guest, vigil) = try attach("sleep 600 & echo $! > \(pids.path); wait")
            let call = try guest.console.start("power user 5 6 0")
            let child = try #require(pids.readLine().flatMap { Int32($0) })
            let events = try leave(vigil, guest)
            try expectRefused(call, guest)
            #expect(processEnds(child))
            #expect(try first("released", events).string("reason") == "leaving")
            #expect(try first("command-ended", events).int("signal") == 15)
            #expect(events.last?.name == "detached")
        }

        @Test("A reset from outside ends the command, and the next boot's requests have theirs")
        func reset() throws {
            let pids = NamedPipe()
            let (guest, vigil) = try attach(
                "test $VIGIL_REQUEST = 2 || { sleep 600 & echo $! > \(pids.path); wait; }")
            _ = try guest.console.start("power user 5 6 0")
            let child = try #require(pids.readLine().flatMap { Int32($0) })
            try Operator(path: guest.operatorSocket).command("system_reset")
            #expect(try vigil.event("command-ended").int("signal") == 15)
            #expect(processEnds(child))
            _ = try vigil.event("attached")
            try guest.waitUntilReady()
            try guest.console.run("refuse on")
            try guest.console.run("power user 5 6 0")
            #expect(try vigil.event("released").string("reason") == "command-ended")
            _ = try leave(vigil, guest)
        }

        @Test("A QEMU that is killed takes the command with it")
        func machineLost() throws {
            let pids = NamedPipe()
            let (guest, vigil) = try attach("sleep 600 & echo $! > \(pids.path); wait")
            _ = try guest.console.start("power user 5 6 0")
            let child = try #require(pids.readLine().flatMap { Int32($0) })
            guest.process.kill()
            #expect(try vigil.event("command-ended").int("signal") == 15)
            #expect(try vigil.event("detached").string("reason") == "machine-lost")
            #expect(vigil.exitStatus() == 9 && processEnds(child))
        }

        @Test("When Vigil is killed, its guardian lets the caller go, and the shell ends")
        func vigilKilled() throws {
            let (ready, never) = (NamedPipe(), NamedPipe())
            let (guest, vigil) = try attach("echo $$ > \(ready.path); read go < \(never.path)")
            let call = try guest.console.start("power user 5 6 0")
            let shell = try #require(ready.readLine().flatMap { Int32($0) })
            vigil.send(SIGKILL)
            try expectRefused(call, guest)
            #expect(processEnds(shell))
            try guest.expectNothingLeft()
        }

        @Test("Options that do not go together, or out of range, are usage errors")
        func usage() throws {
            for options in [
                ["--run-before", "true", "--hold", "500"], ["--hold-limit", "500"], ["--run-before", ""],
                ["--run-before", "true", "--hold-limit", "0"], ["--run-before", "true", "--hold-limit", "3600001"],
            ] {
                let vigil = try VigilProcess(["attach", "qemu:/x"] + options)
                #expect(vigil.exitStatus() == 64, "\(options)")
                #expect(vigil.errorText.contains(options.count == 2 && options[1].isEmpty ? "--run-before" : "--hold"))
            }
        }
    }
}
