import BundledGuest
import Foundation
import Testing

extension Integration {
    /// Agents in a real guest: in, at work, and out again before each transition.
    @Suite(.serialized)
    struct AgentTests {
        static func guest(_ processors: Int) throws -> BundledGuestMachine {
            var configuration = GuestConfiguration()
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
    }
}
