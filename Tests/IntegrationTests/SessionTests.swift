import BundledGuest
import Foundation
import Testing

extension Integration {
    /// What a session reports, from attach to detach.
    @Suite(.serialized)
    struct SessionTests {
        @Test("The demo sees everything as expected, and says so on its last line")
        func demo() throws {
            let result = try VigilProcess.run(
                "demo", "--format", "json", "--hold", "200", "--arch", GuestConfiguration.tested.architecture.rawValue)
            #expect(result.status == 0, "\(result.output)\(result.errors)")
            let events = result.output.split(separator: "\n").map { VigilEvent(String($0)) }
            #expect(!events.contains { $0 == nil }, "every line is a JSON object")
            let names = events.compactMap { $0?.name }
            #expect(names.last == "demo-summary")
            #expect(events.last??.int("passed") == (GuestConfiguration.is32Bit ? 15 : 21))
            #expect(events.allSatisfy { $0?.string("timestamp")?.hasSuffix("Z") == true })
            // The story without agents comes first.
            let outcomes = events.compactMap { $0?.name == "outcome" ? $0?.string("result") : nil }
            #expect(outcomes.prefix(5) == ["refused", "resumed", "reset", "hibernated", "powered-off"])
            let end = try #require(names.indices.filter { names[$0] == "detached" }.dropFirst().first)
            let story = names[...end]
            #expect(story.count { $0 == "request-ignored" } == 2)
            #expect(story.count { $0 == "transition-requested" } == 5)
            #expect(story.count { $0 == "awoken" } == 1 && !story.contains("warning"))
        }

        @Test(
            "The demo shows which transitions a guest with agents does not survive without the guard, and does with it",
            .needs64Bit)
        func comparison() throws {
            let result = try VigilProcess.run("demo", "--format", "json", "--hold", "20")
            #expect(result.status == 0, "\(result.output)\(result.errors)")
            let summary = try #require(VigilEvent(String(result.output.split(separator: "\n").last ?? "")))
            let verdicts = try #require(summary.members["transitions"] as? [[String: any Sendable]])
            func ends(_ guarded: String) -> [String: String] {
                let pairs = verdicts.filter { $0["guard"] as? String == guarded }.compactMap { verdict in
                    (verdict["transition"] as? String).map { ($0, verdict["end"] as? String ?? "") }
                }
                return Dictionary(pairs) { first, _ in first }
            }
            let guarded = [
                "sleep": "resumed", "hybrid-sleep": "resumed", "hibernation": "hibernated", "reboot": "reset",
                "refused-request": "refused", "shutdown": "powered-off",
            ]
            #expect(ends("on") == guarded)
            let unguarded = ends("off")
            for kind in ["reboot", "refused-request", "shutdown"] { #expect(unguarded[kind] == guarded[kind]) }
            // Changed code that its own check finds, and an agent in memory that is not there.
            #expect(unguarded["sleep"] == "bug check 0x109" && unguarded["hibernation"] == "bug check 0x109")
            #expect(unguarded["hybrid-sleep"]?.hasPrefix("bug check 0x") == true)
        }

        @Test("Unprivileged callers and bad arguments change nothing in what comes after")
        func ignored() throws {
            let guest = try BundledGuestMachine.ready()
            let vigil = try VigilProcess(["attach", guest.target, "--hold", "50", "--format", "json"])
            _ = try vigil.event("attached")
            for (command, status) in [
                ("power unprivileged 5 6 0", 0xC000_0061 as UInt64), ("power kernel 5 0 0", 0xC000_000D),
                ("power user 0 6 0", 0xC000_000D), ("power kernel-direct 9 6 0", 0xC000_000D),
            ] {
                let reply = try guest.console.run(command)
                #expect(reply["status"] == status, "\(command): \(reply.result)")
                let event = try vigil.event("request-ignored")
                #expect(event.string("reason") != nil)
            }
            try guest.console.run("refuse on")
            try guest.console.run("power kernel-direct 4 6 0")
            #expect(try vigil.event("transition-requested").string("transition") == "shutdown")
            #expect(try vigil.event("outcome").string("result") == "refused")
            // WarmEject comes back with success, and nothing goes down.
            try guest.console.run("refuse off")
            try guest.console.run("power user 7 4 0")
            let request = try vigil.event("transition-requested")
            #expect(request.string("transition") == "unknown")
            let outcome = try vigil.event("outcome")
            #expect(outcome.string("result") == "returned")
            #expect(outcome.string("status") == "0x00000000")
            let counts = try guest.console.run("counts")
            vigil.send(SIGTERM)
            #expect(vigil.exitStatus() == 0)
            let end = try vigil.event("detached")
            #expect(end.int("entries").map(UInt64.init) == counts["entries"])
            #expect(end.int("returns").map(UInt64.init) == counts["returns"])
        }

        @Test("Twelve callers at once: each is seen once, none is lost, none is stuck")
        func manyCallers() throws {
            let guest = try BundledGuestMachine.ready()
            try guest.console.run("refuse on")
            let vigil = try VigilProcess(["attach", guest.target, "--hold", "100", "--format", "json"])
            _ = try vigil.event("attached")
            let calls = try (0..<12).map {
                try guest.console.start("power \(["user", "kernel", "kernel-direct"][$0 % 3]) 5 6 0")
            }
            for call in calls { #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3) }
            let counts = try guest.console.run("counts")
            vigil.send(SIGTERM)
            #expect(vigil.exitStatus() == 0)
            let events = vigil.outputText.split(separator: "\n").compactMap { VigilEvent(String($0)) }
            #expect(events.count { $0.name == "transition-requested" } == 12)
            #expect(events.count { $0.name == "held" } + events.count { $0.name == "not-held" } == 12)
            #expect(events.last?.int("entries").map(UInt64.init) == counts["entries"])
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
        }

        @Test("A session whose output nobody reads any more leaves in good order")
        func outputClosed() throws {
            let guest = try BundledGuestMachine.ready()
            try guest.console.run("refuse on")
            let script = "exec 3>&1; { \"$@\"; echo ended $? >&3; } | head -n 1 >&3"
            let vigil = try VigilProcess(
                ["attach", guest.target, "--format", "json"], by: ["/bin/sh", "-c", script, "sh"])
            _ = try vigil.event("attached")
            // The next line has no reader.
            try guest.console.run("power user 5 6 0")
            _ = vigil.exitStatus()
            #expect(vigil.outputText.contains("ended 0"), "\(vigil.outputText)\(vigil.errorText)")
            try guest.expectNothingLeft()
        }

        @Test("Leaving releases a held caller at once")
        func leavingReleases() throws {
            let guest = try BundledGuestMachine.ready()
            try guest.console.run("refuse on")
            let vigil = try VigilProcess(["attach", guest.target, "--hold", "9000", "--format", "json"])
            _ = try vigil.event("attached")
            let call = try guest.console.start("power user 5 6 0")
            _ = try vigil.event("transition-requested")
            vigil.send(SIGINT)
            #expect(try vigil.event("released").string("reason") == "leaving")
            #expect(vigil.exitStatus() == 0)
            #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3)
            try guest.expectNothingLeft()
        }

        @Test("A reset from outside is unannounced, and the kernel that comes up is attached to again")
        func hostReset() throws {
            let guest = try BundledGuestMachine.ready()
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            let first = try vigil.event("attached")
            try Operator(path: guest.operatorSocket).command("system_reset")
            #expect(try vigil.event("unannounced").string("what") == "reset")
            let second = try vigil.event("attached")
            #expect(first.string("kernelBase") != second.string("kernelBase"))
            try guest.waitUntilReady()
            try guest.console.run("refuse on")
            try guest.console.run("power user 5 6 0")
            #expect(try vigil.event("outcome").string("result") == "refused")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
        }

        @Test("An operator's stop and start in the middle of a session are theirs, and Vigil goes on")
        func operatorStopsAndStarts() throws {
            let guest = try BundledGuestMachine.ready()
            try guest.console.run("refuse on")
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            _ = try vigil.event("attached")
            let seen = try Operator(path: guest.operatorSocket)
            for _ in 0..<3 {
                try seen.command("stop")
                #expect(try seen.runState() == .paused)
                try seen.command("cont")
                try guest.console.run("power user 5 6 0")
                #expect(try vigil.event("outcome").string("result") == "refused")
            }
            try seen.command("stop")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            #expect(try seen.runState() == .paused)
            try seen.command("cont")
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
        }

        @Test("A guest that its operator stopped is left stopped")
        func pausedByOperator() throws {
            let guest = try BundledGuestMachine.ready()
            do { try Operator(guest).command("stop") }
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            #expect(try vigil.event("attached").string("runState") == "paused")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            let seen = try Operator(guest)
            #expect(try seen.runState() == .paused)
            try seen.command("cont")
            #expect(try guest.console.run("ping").result == "ok pong")
        }
    }
}
