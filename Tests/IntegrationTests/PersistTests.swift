import BundledGuest
import Foundation
import Testing

extension Integration {
    /// `--persist`: a guest whose QEMU ends and comes back.
    @Suite(.serialized)
    struct PersistTests {
        /// A path for a QMP socket that one QEMU after the other serves.
        private final class SharedSocket {
            let path = "/tmp/vigil-persist-\(UInt32.random(in: .min ... .max))"
            deinit { unlink(path) }

            var target: String { "qemu:\(path)" }

            func start() throws -> BundledGuestMachine {
                var configuration = GuestConfiguration.tested
                configuration.extraArguments = ["-qmp", "unix:\(path),server=on,wait=off"]
                let guest = try BundledGuestMachine(configuration)
                try guest.waitUntilReady()
                // Agents come in with a thread that makes a system call.
                try guest.console.run("busy on")
                return guest
            }
        }

        @Test(
            "Started before there is any QEMU, Vigil attaches to each that serves the socket, in a session of its own")
        func comesBack() throws {
            let socket = SharedSocket()
            let vigil = try VigilProcess(["attach", socket.target, "--persist", "--format", "json"])
            #expect(try vigil.event("waiting").string("reason")?.contains("no such socket") == true)
            var sessions: Set<String?> = []

            // It powers off.
            var guest = try socket.start()
            sessions.insert(try vigil.event("attached").string("session"))
            try BootTests.expectArmed(vigil, guest)
            try guest.console.run("refuse off")
            _ = try guest.console.start("power user 6 6 0")
            #expect(try vigil.event("outcome").string("result") == "powered-off")
            _ = try vigil.event("detached")
            #expect(try vigil.event("waiting").string("reason")?.contains("waiting for the next") == true)

            // It is killed.
            guest = try socket.start()
            sessions.insert(try vigil.event("attached").string("session"))
            try BootTests.expectArmed(vigil, guest)
            kill(guest.process.processID, SIGKILL)
            #expect(try vigil.event("waiting").string("reason")?.contains("waiting for the next") == true)

            // Its path is that of a socket where nobody listens any more, until the next serves it.
            guest = try socket.start()
            let third = try vigil.event("attached")
            sessions.insert(third.string("session"))
            try BootTests.expectArmed(vigil, guest)
            #expect(sessions.count == 3 && vigil.isRunning)
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            try guest.expectNothingLeft()
        }

        @Test("Ctrl-C ends the wait for a QEMU; without --persist there is none")
        func interrupted() throws {
            let socket = SharedSocket()
            let vigil = try VigilProcess(["attach", socket.target, "--persist", "--format", "json"])
            _ = try vigil.event("waiting")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            #expect(try VigilProcess.run("attach", socket.target).status == 3)
        }

        @Test("What is wrong with the target, and will stay so, is said at once")
        func wrongTarget() throws {
            let file = FileManager.default.temporaryDirectory.appendingPathComponent("vigil-no-socket-\(getpid())")
            try Data("x".utf8).write(to: file)
            defer { try? FileManager.default.removeItem(at: file) }
            let result = try VigilProcess.run("attach", "qemu:\(file.path)", "--persist")
            #expect(result.status == 3 && result.errors.contains("not a socket"))
            let image = try VigilProcess.run("attach", file.path, "--persist")
            #expect(image.status == 15, "\(image)")
        }

        @Test("What was wished for in one machine is there in the next", .needs64Bit)
        func wishes() throws {
            let socket = SharedSocket()
            let input = Pipe()
            let vigil = try VigilProcess(
                ["attach", socket.target, "--persist", "--commands", "--format", "json"], input: input)
            var guest = try socket.start()
            _ = try vigil.event("attached")
            try input.fileHandleForWriting.write(contentsOf: Data("protect kernel-code on\nagent heartbeat on\n".utf8))
            _ = try vigil.event("protections-armed")
            _ = try vigil.event("agent-deployed")
            // After a reset as well.
            try Operator(path: guest.operatorSocket).command("system_reset")
            _ = try vigil.event("attached")
            _ = try vigil.event("protections-armed")
            try guest.waitUntilReady()
            try guest.console.run("busy on")
            _ = try vigil.event("agent-deployed")
            kill(guest.process.processID, SIGKILL)
            _ = try vigil.event("waiting")
            guest = try socket.start()
            _ = try vigil.event("attached")
            #expect(try vigil.event("protections-armed").strings("protections") == ["kernel-code"])
            #expect(try vigil.event("agent-deployed").string("agent") == "heartbeat")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            try guest.expectNothingLeft()
        }
    }
}
