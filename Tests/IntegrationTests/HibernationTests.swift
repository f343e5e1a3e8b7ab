import BundledGuest
import Foundation
import HypervisorInterface
import Testing

@testable import QEMUHypervisor

extension Integration {
    /// One boot of a guest through several QEMUs, and what Vigil says of it in each.
    @Suite(.serialized)
    final class HibernationTests {
        let disk: TemporaryDisk
        let state = "/tmp/vigil-test-state-\(UUID().uuidString)"

        init() throws { disk = try TemporaryDisk() }
        deinit { try? FileManager.default.removeItem(atPath: state) }

        private var configuration: GuestConfiguration {
            var configuration = GuestConfiguration.tested
            configuration.disk = disk.path
            return configuration
        }

        private func attach(_ guest: BundledGuestMachine, _ arguments: String...) throws -> VigilProcess {
            try VigilProcess(["attach", guest.target, "--state", state, "--format", "json"] + arguments)
        }

        /// A new QEMU in which the guest comes back.
        private func resume() throws -> BundledGuestMachine {
            let guest = try BundledGuestMachine(configuration)
            _ = try guest.console.waitForLine(containing: "! awake")
            return guest
        }

        private var records: [String] { (try? FileManager.default.contentsOfDirectory(atPath: state)) ?? [] }

        /// Asks for a hibernation, which Vigil sees through to the end of QEMU.
        /// - Returns: the request's number.
        private func hibernate(
            _ guest: BundledGuestMachine, _ vigil: VigilProcess, _ command: String = "power user 3 5 0",
            sourceLocation: SourceLocation = #_sourceLocation
        ) throws -> Int? {
            _ = try guest.console.start(command)
            let request = try vigil.event("transition-requested", sourceLocation: sourceLocation)
            #expect(request.string("transition") == "hibernate", sourceLocation: sourceLocation)
            let outcome = try vigil.event("outcome", sourceLocation: sourceLocation)
            #expect(outcome.string("result") == "hibernated", sourceLocation: sourceLocation)
            #expect(outcome.string("status") == nil, sourceLocation: sourceLocation)
            #expect(outcome.int("request") == request.int("request"), sourceLocation: sourceLocation)
            #expect(vigil.exitStatus() == 0, sourceLocation: sourceLocation)
            return request.int("request")
        }

        private func leave(_ vigil: VigilProcess) {
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
        }

        private func expectNoAwakening(_ vigil: VigilProcess, sourceLocation: SourceLocation = #_sourceLocation) {
            #expect(!vigil.outputText.contains("\"awoken\""), "\(vigil.outputText)", sourceLocation: sourceLocation)
        }

        @Test("A held hibernation is seen to the end; the guest that resumes in a new QEMU has awoken from it, once")
        func namesTheRequest() throws {
            let before: VigilEvent
            let request: Int?
            do {
                let guest = try BundledGuestMachine.ready(configuration)
                let vigil = try attach(guest, "--hold", "100")
                before = try vigil.event("attached")
                request = try hibernate(guest, vigil)
                #expect(vigil.outputText.contains("\"held\""))
                #expect(records.count == 1)
            }
            do {
                let guest = try resume()
                // What was armed when it went down is not in it: its own check finds the code as at its boot.
                #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
                let vigil = try attach(guest)
                let after = try vigil.event("attached")
                #expect(after.string("kernelBase") == before.string("kernelBase"))
                #expect(after.string("session") != before.string("session"))
                #expect(after.string("memory")?.prefix(6) == before.string("memory")?.prefix(6))
                let awoken = try vigil.event("awoken")
                #expect(awoken.string("sign") == "record")
                #expect(awoken.string("session") == before.string("session"))
                #expect(awoken.int("request") == request)
                #expect(awoken.string("hibernatedAt")?.hasSuffix("Z") == true)
                #expect(records.isEmpty)
                try guest.console.run("refuse on")
                try guest.console.run("power user 5 6 0")
                #expect(try vigil.event("outcome").string("result") == "refused")
                leave(vigil)
            }
            // The image was good for one resume: this is a boot of its own.
            let guest = try BundledGuestMachine.ready(configuration)
            let vigil = try attach(guest)
            #expect(try vigil.event("attached").string("kernelBase") != before.string("kernelBase"))
            leave(vigil)
            expectNoAwakening(vigil)
        }

        @Test("A fresh boot after a recorded hibernation has not awoken, and a damaged record is a warning")
        func freshBoot() throws {
            do {
                let guest = try BundledGuestMachine.ready(configuration)
                let vigil = try attach(guest)
                _ = try vigil.event("attached")
                _ = try hibernate(guest, vigil)
            }
            do {
                // Without its disk.
                let guest = try BundledGuestMachine.ready()
                let vigil = try attach(guest)
                _ = try vigil.event("attached")
                leave(vigil)
                expectNoAwakening(vigil)
                #expect(records.count == 1)
            }
            try "{".write(toFile: state + "/" + records[0], atomically: false, encoding: .utf8)
            let guest = try resume()
            let vigil = try attach(guest)
            _ = try vigil.event("attached")
            #expect(try vigil.event("warning").string("reason")?.contains(state) == true)
            leave(vigil)
        }

        @Test("A state directory that cannot be written is a warning, and the session ends as ever")
        func stateNotWritable() throws {
            let guest = try BundledGuestMachine.ready(configuration)
            let vigil = try VigilProcess(["attach", guest.target, "--state", "/dev/null/vigil", "--format", "json"])
            _ = try vigil.event("attached")
            _ = try guest.console.start("power user 3 5 0")
            let reason = try #require(try vigil.event("warning").string("reason"))
            #expect(reason == "the hibernation could not be recorded in /dev/null/vigil: Not a directory")
            #expect(try vigil.event("outcome").string("result") == "hibernated")
            #expect(vigil.exitStatus() == 0)
            #expect(vigil.errorText.isEmpty)
        }

        @Test("A guest that hibernated while nobody watched is told by its age")
        func olderThanItsMachine() throws {
            var guest = try BundledGuestMachine.ready(configuration)
            // Each time it was awake in an earlier QEMU counts, so that even a slow host gets there.
            for round in 0..<10 {
                try guest.console.run("work 40000000")
                _ = try guest.console.start("power user 3 5 0")
                guest.process.waitForExit()
                guest = try resume()
                let time = try guest.console.run("time")
                let awake = Duration.nanoseconds(100 * Int64((time["interrupt-time"] ?? 0) - (time["bias"] ?? 0)))
                let start = try #require(ProcessStart.of(guest.process.processID))
                if awake > HostClock.sinceBoot - start + .seconds(3) { break }
                #expect(round < 9, "the guest never became older than its machine")
            }
            let vigil = try attach(guest)
            _ = try vigil.event("attached")
            let awoken = try vigil.event("awoken")
            #expect(awoken.string("sign") == "older-than-machine")
            #expect(awoken.string("session") == nil && awoken.int("request") == nil)
            #expect(awoken.string("hibernatedAt") == nil)
            leave(vigil)
        }

        @Test("Refused, hybrid sleep, sleep and fast startup, one after the other: each ends as it really does")
        func pairs() throws {
            let session: String?
            let request: Int?
            do {
                let guest = try BundledGuestMachine.ready(configuration)
                let vigil = try attach(guest, "--hold", "50")
                session = try vigil.event("attached").string("session")
                let seen = try Operator(path: guest.operatorSocket)

                // Refused, and the real ones after it.
                try guest.console.run("refuse on")
                let refusal = try guest.console.run("power user 3 5 0")
                #expect(refusal["status"] == 0xC000_02D3)
                #expect(try vigil.event("transition-requested").string("transition") == "hibernate")
                #expect(try vigil.event("outcome").string("result") == "refused")
                #expect(records.isEmpty)
                try guest.console.run("refuse off")

                for (command, transition) in [
                    ("power user 2 5 0", "hibernate"), ("power kernel 2 4 0", "sleep"),
                    ("power user 2 5 0", "hibernate"),
                ] {
                    let poolBefore = try poolFrame(of: guest, seen)
                    let call = try guest.console.start(command)
                    #expect(try vigil.event("transition-requested").string("transition") == transition)
                    while try seen.runState() != .suspended { seen.waitForEvent() }
                    try seen.command("system_wakeup")
                    let outcome = try vigil.event("outcome")
                    #expect(outcome.string("result") == "resumed", "\(command)")
                    #expect(outcome.string("status") == "0x00000000")
                    #expect(try guest.console.reply(to: call)["status"] == 0)
                    // After a hybrid sleep the pool lies in other frames, and Vigil goes on all the same.
                    #expect(try (poolFrame(of: guest, seen) != poolBefore) == (transition == "hibernate"), "\(command)")
                    #expect(records.isEmpty)
                }
                // Fast startup's shutdown.
                request = try hibernate(guest, vigil, "power user 6 5 0")
                #expect(!vigil.outputText.contains("\"unannounced\""), "\(vigil.outputText)")
            }
            do {
                let guest = try resume()
                #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
                let vigil = try attach(guest, "--hold", "50")
                let own = try vigil.event("attached").string("session")
                let awoken = try vigil.event("awoken")
                #expect(awoken.string("session") == session && awoken.int("request") == request)
                // Refused and real again, in the second QEMU of the same boot.
                try guest.console.run("refuse on")
                try guest.console.run("power user 4 5 0")
                #expect(try vigil.event("transition-requested").string("transition") == "hibernate")
                #expect(try vigil.event("outcome").string("result") == "refused")
                try guest.console.run("refuse off")
                #expect(try hibernate(guest, vigil, "power user 4 5 0") == 2)
                #expect(own != session)
                #expect(records.count == 1)
            }
            let guest = try resume()
            let vigil = try attach(guest)
            _ = try vigil.event("attached")
            let awoken = try vigil.event("awoken")
            #expect(awoken.string("session") != session && awoken.int("request") == 2)
            _ = try guest.console.start("power user 6 6 0")
            #expect(try vigil.event("outcome").string("result") == "powered-off")
            #expect(vigil.exitStatus() == 0)
            #expect(records.isEmpty)
        }

        /// Where a page of the non-paged pool lies: that of the first thread's object.
        private func poolFrame(of guest: BundledGuestMachine, _ seen: Operator) throws -> String {
            let threads = try guest.console.run("threads").lines.filter { $0.hasPrefix("thread=") }
            let words = try #require(threads.first).split(separator: " ")
            let address = try #require(words.first { $0.hasPrefix("address=") }).dropFirst("address=".count)
            return try seen.qmp.monitor("gva2gpa \(address)").trimmingCharacters(in: .whitespacesAndNewlines)
        }
    }
}
