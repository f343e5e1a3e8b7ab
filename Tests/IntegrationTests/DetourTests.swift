import BundledGuest
import Foundation
import TestSupport
import Testing

extension Integration {
    /// A jump in the power function of a real guest.
    @Suite(.serialized)
    struct DetourTests {
        private static let arguments = ["--intercept", "detour", "--allow-visible-patches", "--format", "json"]

        /// A guest whose power function is in memory: it has been called once.
        private func guest(_ processors: Int = 1) throws -> BundledGuestMachine {
            var configuration = GuestConfiguration.tested
            configuration.extraArguments = ["-smp", String(processors)]
            let guest = try BundledGuestMachine.ready(configuration)
            try guest.console.run("refuse on")
            #expect(try guest.console.run("power kernel 5 6 0")["status"] == 0xC000_02D3)
            return guest
        }

        private func attach(_ guest: BundledGuestMachine, _ more: String...) throws -> (VigilProcess, VigilEvent) {
            let vigil = try VigilProcess(["attach", guest.target] + Self.arguments + more)
            return (vigil, try vigil.event("attached"))
        }

        /// The power function's first bytes, as an operator sees them.
        private func code(_ seen: Operator, _ attached: VigilEvent) throws -> [UInt8] {
            let text = try #require(attached.string("powerFunction"))
            let address = try #require(UInt64(text.dropFirst(2), radix: 16))
            return try seen.code(at: address, count: 32)
        }

        /// Vigil leaves, and its last event is returned.
        private func leave(_ vigil: VigilProcess) throws -> VigilEvent {
            vigil.send(SIGTERM)
            #expect(vigil.exitStatus() == 0, "\(vigil.errorText)")
            return try vigil.event("detached")
        }

        @Test(
            "Through the jump come refused, held and users' calls, and a sleep; then the guest's code is as it was",
            arguments: [1, 4])
        func calls(_ processors: Int) throws {
            let guest = try guest(processors)
            let before = try #require(try guest.console.run("counts")["entries"])
            let (vigil, attached) = try attach(guest, "--hold", "50")
            #expect(attached.string("mechanism") == "inline-detour")
            let seen = try Operator(path: guest.operatorSocket)
            #expect(try code(seen, attached).first == 0xe9)
            #expect(try guest.console.run("check").result.hasPrefix("error modified"))
            // The user's call enters twice.
            for mode in ["kernel", "user", "kernel-direct", "unprivileged"] {
                let refused = mode != "unprivileged"
                let reply = try guest.console.run("power \(mode) 5 6 0")
                #expect(reply["status"] == (refused ? 0xC000_02D3 : 0xC000_0061), "\(mode): \(reply.result)")
                guard refused else { continue }
                #expect(try vigil.event("held").int("microseconds") ?? 0 >= 49_000)
                #expect(try vigil.event("outcome").string("result") == "refused")
            }
            let calls = try (0..<4).map { try guest.console.start("power \($0 % 2 == 0 ? "kernel" : "user") 5 6 0") }
            for call in calls { #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3) }

            try guest.console.run("refuse off")
            let sleep = try guest.console.start("power user 2 4 0")
            while try seen.runState() != .suspended { seen.waitForEvent() }
            try seen.command("system_wakeup")
            #expect(try guest.console.reply(to: sleep)["status"] == 0)
            let counts = try guest.console.run("counts")
            let end = try leave(vigil)
            #expect(end.int("entries").map(UInt64.init) == (counts["entries"] ?? 0) - before)
            let events = vigil.outputText.split(separator: "\n").compactMap { VigilEvent(String($0)) }
            #expect(events.last { $0.name == "outcome" }?.string("result") == "resumed")
            #expect(try code(seen, attached).first != 0xe9)
            try guest.console.run("refuse on")
            try expectNothingLeft(in: guest)
        }

        /// Shows that nothing of Vigil is in the guest, the jump's handler included.
        ///
        /// A word that an interrupted thread once left on its stack keeps the handler in place. Such words are
        /// overwritten as the guest runs, and each session tries again.
        private func expectNothingLeft(in guest: BundledGuestMachine) throws {
            var left: String?
            for _ in 0..<50 {
                let (vigil, _) = try attach(guest)
                #expect(try guest.console.run("power user 5 6 0")["status"] == 0xC000_02D3)
                left = try leave(vigil).string("handlerLeft")
                if left == nil { break }
            }
            #expect(left == nil, "\(left ?? "")")
            try guest.expectNothingLeft()
        }

        @Test("Vigil dies at random instants while calls come through the jump, and all go on", arguments: [1, 4])
        func randomInstants(_ processors: Int) throws {
            let guest = try guest(processors)
            let (first, attached) = try attach(guest)
            _ = try leave(first)
            let seen = try Operator(path: guest.operatorSocket)
            let original = try code(seen, attached)
            var random = SeededGenerator(seed: 0x5eed_0002)
            for round in 0..<12 {
                let (vigil, _) = try attach(guest, "--hold", "20")
                var calls: [Int] = []
                for index in 0..<Int.random(in: 1...6, using: &random) {
                    calls.append(try guest.console.start("power \(index % 2 == 0 ? "kernel" : "user") 5 6 0"))
                    if calls.count > 3 { _ = try guest.console.reply(to: calls.removeFirst()) }
                }
                vigil.send(SIGKILL)
                // While a transition is under way there is no jump to take out.
                let word = try vigil.errorLine(containing: "vigil guardian:")
                #expect(!word.contains("somebody else's") && !word.contains("could not be"), "round \(round): \(word)")
                #expect(try code(seen, attached) == original, "round \(round): \(word)")
                for call in calls {
                    #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3, "round \(round): \(word)")
                }
            }
            try expectNothingLeft(in: guest)
        }

        enum Moment: CaseIterable { case armed, held }

        @Test(
            "Vigil dies: the function has its bytes again, a held caller goes on, and the next session clears the rest",
            arguments: Moment.allCases)
        func dies(_ moment: Moment) throws {
            let guest = try guest()
            let (first, attached) = try attach(guest)
            _ = try leave(first)
            let seen = try Operator(path: guest.operatorSocket)
            let original = try code(seen, attached)

            let (vigil, _) = try attach(guest, "--hold", "9000")
            #expect(try code(seen, attached) != original)
            var call: Int?
            if moment == .held {
                call = try guest.console.start("power user 5 6 0")
                _ = try vigil.event("transition-requested")
                try guest.console.run("counts")
            }
            vigil.send(SIGKILL)
            let word = try vigil.errorLine(containing: "vigil guardian:")
            #expect(word.contains("the function's bytes are its own again; the jump's handler"), "\(word)")
            #expect(try code(seen, attached) == original)
            if let call { #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3) }
            #expect(try guest.console.run("power user 5 6 0")["status"] == 0xC000_02D3)

            try expectNothingLeft(in: guest)
        }

        @Test("A reset takes the jump with it; the new boot is patched only if its function is in memory just then")
        func reset() throws {
            let guest = try guest()
            let (vigil, _) = try attach(guest)
            try guest.console.run("refuse off")
            _ = try guest.console.start("power kernel 5 6 0")
            #expect(try vigil.event("outcome").string("result") == "reset")
            try guest.waitUntilReady()
            vigil.send(SIGTERM)
            let status = vigil.exitStatus()
            // Pageable code is there until the end of the boot.
            let isRefused = status == 13 && vigil.errorText.contains("code that is in memory")
            #expect(isRefused || status == 0, "\(status): \(vigil.outputText)\(vigil.errorText)")
            try guest.console.run("refuse on")
            #expect(try guest.console.run("power user 5 6 0")["status"] == 0xC000_02D3)
            // A function with a jump in it would be refused.
            let inspected = try VigilProcess.run("inspect", guest.target, "--format", "json")
            #expect(VigilEvent(inspected.output)?.string("detour")?.hasPrefix("0x") == true, "\(inspected.output)")
        }

        @Test("Without the user's word, or without the function's page, nothing is armed and the exit code is 13")
        func refused() throws {
            let guest = try BundledGuestMachine.ready()
            let unasked = try VigilProcess.run("attach", guest.target, "--intercept", "detour")
            #expect(unasked.status == 13 && unasked.output.isEmpty)
            #expect(unasked.errors.contains("--allow-visible-patches"))

            try guest.console.run("trim")
            let inspected = try VigilProcess.run("inspect", guest.target, "--format", "json")
            #expect(VigilEvent(inspected.output)?.string("detourObstacle")?.contains("in memory") == true)
            let absent = try VigilProcess.run(
                "attach", guest.target, "--intercept", "detour", "--allow-visible-patches")
            #expect(absent.status == 13, "\(absent.output)\(absent.errors)")
            #expect(absent.errors.contains("code that is in memory"))
            try guest.expectNothingLeft()

            let possible = try VigilProcess.run("inspect", guest.target, "--format", "json")
            #expect(VigilEvent(possible.output)?.string("detour")?.hasPrefix("0x") == true)
        }
    }
}
