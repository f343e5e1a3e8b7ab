import BundledGuest
import Foundation
import Testing

extension Integration {
    /// Sleep, seen from its request to the return, on one processor and on several.
    @Suite(.serialized)
    struct SleepTests {
        @Test("A guest under load sleeps and wakes, again and again, each time seen through", arguments: [1, 2, 4])
        func sleepsAndWakes(_ processors: Int) throws {
            var configuration = GuestConfiguration.tested
            configuration.extraArguments = ["-smp", String(processors)]
            let guest = try BundledGuestMachine.ready(configuration)
            try guest.console.run("load on")
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            _ = try vigil.event("attached")
            let seen = try Operator(path: guest.operatorSocket)
            for round in 0..<3 {
                let call = try guest.console.start("power user 2 4 0")
                #expect(try vigil.event("transition-requested").string("transition") == "sleep")
                while try seen.runState() != .suspended { seen.waitForEvent() }
                try seen.command("system_wakeup")
                let outcome = try vigil.event("outcome")
                #expect(outcome.string("result") == "resumed", "round \(round)")
                #expect(outcome.string("status") == "0x00000000")
                #expect(try guest.console.reply(to: call)["status"] == 0)
            }
            // One that a driver refuses, in between.
            try guest.console.run("refuse on")
            try guest.console.run("power kernel 2 4 0")
            #expect(try vigil.event("outcome").string("result") == "refused")
            try guest.console.run("load off")
            let counts = try guest.console.run("counts")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            let end = try vigil.event("detached")
            #expect(end.int("entries").map(UInt64.init) == counts["entries"])
            #expect(end.int("returns").map(UInt64.init) == counts["returns"])
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
        }

        @Test(
            "A machine type that loses its ACPI ports in a sleep is found by that, and said once; others are not",
            arguments: ["pc", "q35"])
        func losesPorts(_ machine: String) throws {
            var configuration = GuestConfiguration.tested
            configuration.machine = machine
            let guest = try BundledGuestMachine.ready(configuration)
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            _ = try vigil.event("attached")
            let seen = try Operator(path: guest.operatorSocket)
            let call = try guest.console.start("power user 2 4 0")
            while try seen.runState() != .suspended { seen.waitForEvent() }
            try seen.command("system_wakeup")
            #expect(try guest.console.reply(to: call)["status"] == 0)
            // The guest's own look at its ports is what Vigil says of them.
            if machine == "q35" {
                let reason = try vigil.event("warning").string("reason")
                #expect(reason?.contains("can neither sleep again nor power off") == true)
                #expect(try guest.console.run("power kernel 2 4 0")["status"] == 0xC000_009E)
            } else {
                let call = try guest.console.start("power kernel 2 4 0")
                while try seen.runState() != .suspended { seen.waitForEvent() }
                try seen.command("system_wakeup")
                #expect(try guest.console.reply(to: call)["status"] == 0)
            }
            // Each stop is another chance to say it again.
            try guest.console.run("refuse on")
            try guest.console.run("power kernel 5 6 0")
            while try vigil.event("outcome").string("transition") != "reboot" {}
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            #expect(vigil.outputText.split(separator: "\"warning\"").count == (machine == "q35" ? 2 : 1))
        }

        @Test("Four callers at once on four processors: each is seen, none is lost, none is stuck")
        func fourCallers() throws {
            var configuration = GuestConfiguration.tested
            configuration.extraArguments = ["-smp", "4"]
            let guest = try BundledGuestMachine.ready(configuration)
            try guest.console.run("refuse on")
            let vigil = try VigilProcess(["attach", guest.target, "--hold", "100", "--format", "json"])
            _ = try vigil.event("attached")
            for _ in 0..<20 {
                let calls = try (0..<4).map { _ in try guest.console.start("power kernel 5 6 0") }
                for call in calls { #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3) }
            }
            let counts = try guest.console.run("counts")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            let events = vigil.outputText.split(separator: "\n").compactMap { VigilEvent(String($0)) }
            #expect(events.count { $0.name == "transition-requested" } == 80)
            #expect(events.count { $0.name == "held" } == 80)
            #expect(events.last?.int("entries").map(UInt64.init) == counts["entries"])
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
        }
    }
}
