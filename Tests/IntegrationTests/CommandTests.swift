import BundledGuest
import Foundation
import Glibc
import Testing

extension Integration {
    /// What goes wrong ends in a sentence and a code of its own, and the guest is unharmed.
    @Suite(.serialized)
    struct CommandTests {
        private func expectSentence(
            _ result: (status: Int32, output: String, errors: String), _ status: Int32, _ words: String,
            sourceLocation: SourceLocation = #_sourceLocation
        ) {
            #expect(result.status == status, "\(result)", sourceLocation: sourceLocation)
            #expect(result.errors.contains(words), "\(result)", sourceLocation: sourceLocation)
            #expect(result.errors.split(separator: "\n").count == 1, "\(result)", sourceLocation: sourceLocation)
            #expect(result.output.isEmpty, "\(result)", sourceLocation: sourceLocation)
        }

        @Test("A socket that is not there, or is none, cannot be connected to")
        func noSocket() throws {
            expectSentence(try VigilProcess.run("attach", "qemu:/nowhere/qmp"), 3, "no such socket")
            expectSentence(try VigilProcess.run("inspect", "qemu:/nowhere/qmp"), 3, "no such socket")
            expectSentence(try VigilProcess.run("attach", "qemu:/etc/passwd"), 3, "not a socket")
            expectSentence(try VigilProcess.run("attach", "qemu:127.0.0.1:1"), 3, "nobody listens")
        }

        @Test("A target of another kind, and a senseless option, are usage errors")
        func usage() throws {
            #expect(try VigilProcess.run("attach", "xen:1").status == 64)
            #expect(try VigilProcess.run("attach", "qemu:/x", "--hold", "0").status == 64)
            #expect(try VigilProcess.run("attach", "qemu:/x", "--patterns", "/nowhere").status == 64)
            #expect(try VigilProcess.run("attach", "--help").status == 0)
        }

        @Test("A QMP socket with another client is said so after a short wait")
        func twoClients() throws {
            let guest = try BundledGuestMachine.ready()
            let other = try Operator(guest)
            expectSentence(try VigilProcess.run("attach", guest.target), 4, "another client")
            #expect(try other.runState() == .running)
        }

        @Test("A QEMU with a debugger is left to its debugger")
        func debugger() throws {
            var configuration = GuestConfiguration.tested
            let path = "/tmp/vigil-test-gdb-\(UInt32.random(in: .min ... .max))"
            defer { unlink(path) }
            configuration.extraArguments = ["-gdb", "unix:\(path),server=on,wait=off"]
            let guest = try BundledGuestMachine.ready(configuration)
            expectSentence(try VigilProcess.run("attach", guest.target), 5, "already has a debug connection")
            let inspected = try VigilProcess.run("inspect", guest.target)
            #expect(inspected.status == 0)
            #expect(inspected.output.contains("a debug connection is in place"))
            #expect(try guest.console.run("ping").result == "ok pong")
        }

        @Test("A second Vigil on another socket of the same QEMU is refused, and the first goes on")
        func secondVigil() throws {
            let guest = try BundledGuestMachine.ready()
            let first = try VigilProcess(["attach", guest.target, "--format", "json"])
            _ = try first.event("attached")
            let second = try VigilProcess.run("attach", "qemu:\(guest.operatorSocket)", "--format", "json")
            #expect(second.status == 5)
            try guest.console.run("refuse on")
            try guest.console.run("power user 5 6 0")
            #expect(try first.event("outcome").string("result") == "refused")
            first.send(SIGINT)
            #expect(first.exitStatus() == 0)
        }

        @Test("A guest that never gets to a kernel is waited for with progress, and given up")
        func noKernel() throws {
            var configuration = GuestConfiguration.tested
            configuration.startsPaused = true
            let guest = try BundledGuestMachine(configuration)
            try guest.waitForSocket()
            let result = try VigilProcess.run("attach", guest.target, "--wait", "1", "--format", "json")
            #expect(result.status == 6, "\(result)")
            #expect(VigilEvent(String(result.output.split(separator: "\n").first ?? ""))?.name == "waiting")
            #expect(try Operator(guest).runState() == .notStarted)
        }

        @Test("A guest that is started while Vigil waits is attached to when its kernel is up")
        func booting() throws {
            var configuration = GuestConfiguration.tested
            configuration.startsPaused = true
            let guest = try BundledGuestMachine(configuration)
            try guest.waitForSocket()
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            _ = try vigil.event("waiting")
            try Operator(path: guest.operatorSocket).command("cont")
            _ = try vigil.event("attached")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            #expect(try guest.console.waitForLine(containing: "ready") != "")
        }

        @Test("A guest that runs, but no Windows, is called so")
        func notWindows() throws {
            // The loader alone, with a file that is no kernel: it complains, and halts in 32-bit mode.
            let guest = try ForeignGuest()
            let result = try VigilProcess.run("attach", guest.target, "--wait", "30")
            #expect(result.status == 7, "\(result)")
            #expect(result.errors.contains("no Windows kernel"))
            #expect(try Operator(path: guest.socket).runState() == .running)
        }

        @Test("A QEMU that is killed ends the session with what was seen")
        func killed() throws {
            let guest = try BundledGuestMachine.ready()
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            _ = try vigil.event("attached")
            guest.process.kill()
            #expect(try vigil.event("detached").string("reason") == "machine-lost")
            #expect(vigil.exitStatus() == 9)
            #expect(vigil.errorText.contains("it ended"))
        }

        @Test("Without QEMU the demo says what to install")
        func demoWithoutQEMU() throws {
            let result = try VigilProcess.run("demo", by: ["/usr/bin/env", "PATH=/nowhere"])
            expectSentence(result, 11, "qemu-system-x86_64 is not installed")
        }
    }
}
