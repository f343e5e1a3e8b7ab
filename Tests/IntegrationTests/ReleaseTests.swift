import BundledGuest
import Foundation
import Testing

@testable import QEMUHypervisor

extension Integration {
    /// When a held caller goes on, nothing of Vigil's is in the guest any more: as the guest itself sees it, and as its
    /// hibernation image holds it. None of the engine's own bookkeeping is asked.
    @Suite(.serialized, .needs64Bit)
    struct ReleaseTests {
        /// The first bytes of each agent's image.
        private static let agentMagic = Data("VigAgnt1".utf8)

        private func attach(_ guest: BundledGuestMachine) throws -> VigilProcess {
            try VigilProcess([
                "attach", guest.target, "--format", "json", "--allow-visible-patches", "--agents", "heartbeat",
                "pt-filter", "--protect", "kernel-code", "interrupt-tables", "service-tables",
            ])
        }

        private func awaitAgents(_ vigil: VigilProcess) throws {
            for _ in 0..<2 { _ = try vigil.event("agent-deployed") }
        }

        private func prepare(_ guest: BundledGuestMachine) throws {
            try guest.console.run("guard resume")
            try guest.console.run("load on")
            #expect(try guest.console.run("watch power on").result == "ok watch=on")
        }

        /// What the guest found when it was asked for a transition.
        private func expectClean(_ guest: BundledGuestMachine, _ context: String) throws {
            let line = try guest.console.waitForLine(containing: "! seen ")
            #expect(line.hasPrefix("! seen code=clean blocks=0 "), "\(context): \(line)")
        }

        @Test("What the guest finds in itself as soon as it goes on: no patch, and no agent", arguments: [1, 2, 4])
        func seenByTheGuest(_ processors: Int) throws {
            let guest = try AgentTests.guest(processors)
            try prepare(guest)
            let vigil = try attach(guest)
            try awaitAgents(vigil)
            // They are there, and the guest can tell.
            #expect(try AgentTests.blocks(guest) == 2)
            #expect(try guest.console.run("check").result.hasPrefix("error modified"))
            let seen = try Operator(path: guest.operatorSocket)
            var calls: UInt64 = 0
            for who in ["kernel", "user", "kernel-direct"] {
                for refuses in [false, true] {
                    try guest.console.run(refuses ? "refuse on" : "refuse off")
                    let call = try guest.console.start("power \(who) 2 4 0")
                    try expectClean(guest, "\(who), refuses \(refuses)")
                    if !refuses {
                        while try seen.runState() != .suspended { seen.waitForEvent() }
                        try seen.command("system_wakeup")
                    }
                    #expect(try guest.console.reply(to: call)["status"] == (refuses ? 0xC000_02D3 : 0))
                    try awaitAgents(vigil)
                    calls += 1
                    let reply = try guest.console.run("seen")
                    #expect(reply.result == "ok code=clean blocks=0 calls=\(calls)")
                }
            }
            try guest.console.run("refuse off")
            _ = try guest.console.start("power user 5 6 0")
            try expectClean(guest, "reboot")
            try guest.waitUntilReady()
            try prepare(guest)
            try awaitAgents(vigil)
            _ = try guest.console.start("power user 6 6 0")
            try expectClean(guest, "shutdown")
            #expect(vigil.exitStatus() == 0)
        }

        @Test("The watch itself: it sees what a call without Vigil's guard would")
        func watchSees() throws {
            let guest = try AgentTests.guest(1)
            try guest.console.run("watch power on")
            try guest.console.run("refuse on")
            try guest.console.run("attack code")
            try guest.console.run("power kernel 2 4 0")
            #expect(try guest.console.run("seen").result == "ok code=modified blocks=0 calls=1")
            try guest.console.run("watch power on")
            try guest.console.run("attack code off")
            try guest.console.run("power kernel 2 4 0")
            #expect(try guest.console.run("seen").result == "ok code=clean blocks=0 calls=1")
        }

        @Test("The hibernation image on the disk holds no agent and no patched instruction", arguments: [1, 2])
        func image(_ processors: Int) throws {
            let disk = try TemporaryDisk()
            var configuration = GuestConfiguration.tested
            configuration.disk = disk.path
            configuration.extraArguments = ["-smp", String(processors)]
            let call: Int
            /// Where the kernel's functions that write page tables lie on the disk, and what they are.
            var functions: [(name: String, offset: Int)] = []
            do {
                let guest = try BundledGuestMachine.ready(configuration)
                try prepare(guest)
                let seen = try Operator(path: guest.operatorSocket)
                let symbols = try guest.console.run("symbols").lines.map { $0.split(separator: " ") }
                for name in ["MiWritePte", "MiExchangePte", "MiChangePte"] {
                    let line = try #require(symbols.first { $0.first == Substring(name) })
                    let text = try seen.qmp.monitor("gva2gpa \(line[1])")
                    let digits = try #require(text.split(separator: " ").last?.dropFirst(2))
                    let physical = try #require(Int(digits.trimmingCharacters(in: .whitespacesAndNewlines), radix: 16))
                    // Guest/common/hibernation.h: a header's sector, and memory from 1 MiB on.
                    functions.append((name, 512 + physical - 0x10_0000))
                }
                let vigil = try attach(guest)
                try awaitAgents(vigil)
                // While they are there, memory has what is searched for: the search would find it.
                let memory = Data(try seen.memory())
                #expect(memory.range(of: Self.agentMagic) != nil)
                let patched = functions.count { isPatched(memory, at: $0.offset - 512 + 0x10_0000) }
                #expect(patched >= 1)
                call = try guest.console.start("power user 3 5 0")
                try expectClean(guest, "hibernation")
                #expect(try vigil.event("outcome").string("result") == "hibernated")
                #expect(vigil.exitStatus() == 0)
                guest.process.waitForExit()
            }
            let image = try Data(contentsOf: URL(fileURLWithPath: disk.path))
            #expect(image.prefix(8) == Data("VGLHIBR1".utf8).prefix(8), "there is an image")
            #expect(image.range(of: Self.agentMagic) == nil, "an agent is on the disk")
            for function in functions {
                #expect(!isPatched(image, at: function.offset), "\(function.name) is patched on the disk")
            }
            let guest = try BundledGuestMachine(configuration)
            _ = try guest.console.waitForLine(containing: "! awake")
            #expect(try guest.console.reply(to: call)["status"] == 0)
            #expect(try guest.console.run("seen").result == "ok code=clean blocks=0 calls=1")
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
            #expect(try AgentTests.blocks(guest) == 0)
        }

        /// Whether one of the first instructions of the function there is `66 … CD 14`.
        private func isPatched(_ bytes: Data, at offset: Int) -> Bool {
            let function = bytes.subdata(in: offset..<offset + 48)
            return function.range(of: Data([0x66, 0xcd, 0x14])) != nil
        }
    }
}
