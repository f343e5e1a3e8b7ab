import BundledGuest
import Foundation
import Testing

extension Integration {
    /// Agents in a real guest: in, at work, and out again before each transition.
    @Suite(.serialized, .needs64Bit)
    struct AgentTests {
        static func guest(_ processors: Int) throws -> BundledGuestMachine {
            var configuration = GuestConfiguration.tested
            configuration.extraArguments = ["-smp", String(processors)]
            return try BundledGuestMachine.ready(configuration)
        }

        /// Blocks of the guest's pool that are Vigil's.
        static func blocks(_ guest: BundledGuestMachine) throws -> Int {
            let lines = try guest.console.run("pool").lines
            guard let line = lines.first(where: { $0.contains("tag=Vigl") }),
                let count = line.split(separator: " ").first(where: { $0.hasPrefix("blocks=") })
            else { return 0 }
            return Int(count.dropFirst("blocks=".count)) ?? -1
        }

        @Test("An agent is deployed, withdrawn before a sleep, and is back after it", arguments: [1, 2, 4])
        func sleeps(_ processors: Int) throws {
            let guest = try Self.guest(processors)
            try guest.console.run("guard on")
            try guest.console.run("busy on")
            let vigil = try VigilProcess(["attach", guest.target, "--agents", "heartbeat", "--format", "json"])
            _ = try vigil.event("attached")
            #expect(try vigil.event("agent-deployed").string("agent") == "heartbeat")
            #expect(try Self.blocks(guest) == 1)
            let seen = try Operator(path: guest.operatorSocket)
            for _ in 0..<3 {
                let call = try guest.console.start("power user 2 4 0")
                #expect(try vigil.event("agent-withdrawn").string("how") == "power-call")
                while try seen.runState() != .suspended { seen.waitForEvent() }
                try seen.command("system_wakeup")
                #expect(try vigil.event("outcome").string("result") == "resumed")
                #expect(try guest.console.reply(to: call)["status"] == 0)
                _ = try vigil.event("agent-deployed")
            }
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            #expect(try vigil.event("agent-withdrawn").string("how") == "by-itself")
            try guest.console.run("busy off")
            #expect(try Self.blocks(guest) == 0)
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
        }

        @Test(
            "A refused request takes the agent out, and it is back once; every way of borrowing threads does it",
            arguments: [("power-call", 1), ("system-call", 1), ("power-call", 2), ("system-call", 2)])
        func refused(_ way: String, _ processors: Int) throws {
            let guest = try Self.guest(processors)
            try guest.console.run("busy on")
            try guest.console.run("refuse on")
            let vigil = try VigilProcess([
                "attach", guest.target, "--agents", "heartbeat", "--withdraw", way, "--format", "json",
            ])
            _ = try vigil.event("attached")
            for who in ["kernel", "user", "kernel-direct"] {
                _ = try vigil.event("agent-deployed")
                #expect(try Self.blocks(guest) == 1)
                let call = try guest.console.start("power \(who) 2 4 0")
                #expect(try vigil.event("agent-withdrawn").string("how") == way)
                #expect(try vigil.event("outcome").string("result") == "refused")
                #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3)
            }
            _ = try vigil.event("agent-deployed")
            let withdrawn = vigil.outputText.components(separatedBy: "agent-withdrawn").count - 1
            let deployed = vigil.outputText.components(separatedBy: "agent-deployed").count - 1
            #expect(withdrawn == 3 && deployed == 4)
            vigil.send(SIGTERM)
            #expect(vigil.exitStatus() == 0)
            #expect(try Self.blocks(guest) == 0)
        }

        @Test("No system call comes: the agent waits for one, and a request passes by it")
        func idle() throws {
            let guest = try Self.guest(1)
            try guest.console.run("refuse on")
            let vigil = try VigilProcess(["attach", guest.target, "--agents", "heartbeat", "--format", "json"])
            _ = try vigil.event("attached")
            // A system thread that calls the function itself makes no system call on its way.
            let call = try guest.console.start("power kernel-direct 2 4 0")
            #expect(try vigil.event("outcome").string("result") == "refused")
            #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3)
            #expect(!vigil.outputText.contains("agent-"))
            try guest.console.run("work 1")
            _ = try vigil.event("agent-deployed")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            #expect(try Self.blocks(guest) == 0)
        }

        @Test("A reboot goes without the agent, and the next boot has it again", arguments: [1, 2])
        func reboots(_ processors: Int) throws {
            let guest = try Self.guest(processors)
            try guest.console.run("busy on")
            let vigil = try VigilProcess(["attach", guest.target, "--agents", "heartbeat", "--format", "json"])
            for _ in 0..<2 {
                _ = try vigil.event("agent-deployed")
                _ = try guest.console.start("power kernel 5 6 0")
                #expect(try vigil.event("agent-withdrawn").string("how") == "power-call")
                #expect(try vigil.event("outcome").string("result") == "reset")
                _ = try guest.console.waitForLine(containing: "Vigil guest ready")
                _ = try vigil.event("attached")
                try guest.console.run("busy on")
            }
            _ = try vigil.event("agent-deployed")
            _ = try guest.console.start("power kernel 4 6 0")
            _ = try vigil.event("agent-withdrawn")
            #expect(try vigil.event("outcome").string("result") == "powered-off")
            #expect(vigil.exitStatus() == 0)
        }

        @Test("A killed or stopped Vigil's agent leaves by itself", arguments: [SIGKILL, SIGSTOP], [1, 2])
        func killed(_ signal: Int32, _ processors: Int) throws {
            let guest = try Self.guest(processors)
            try guest.console.run("load on")
            let vigil = try VigilProcess(["attach", guest.target, "--agents", "heartbeat", "--format", "json"])
            _ = try vigil.event("agent-deployed")
            #expect(try Self.blocks(guest) == 1)
            vigil.send(signal)
            // Only the guest knows when; it is asked until it says so.
            while try Self.blocks(guest) != 0 {}
            if signal == SIGSTOP { vigil.send(SIGCONT) }
            #expect(vigil.exitStatus() != 0)
            try guest.console.run("load off")
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
            try guest.expectNothingLeft()
        }

        @Test("inspect says which agents could run")
        func inspected() throws {
            let guest = try Self.guest(2)
            let vigil = try VigilProcess(["inspect", guest.target, "--format", "json"])
            let found = try vigil.event("inspected")
            #expect(found.strings("agents") == ["heartbeat", "pt-filter"])
            #expect(found.strings("agentsThatNeedVisiblePatches") == ["pt-filter"])
            #expect(vigil.exitStatus() == 0)
        }
    }
}
