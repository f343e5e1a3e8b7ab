import Agents
import BundledGuest
import Foundation
import Introspection
import QEMUHypervisor
import Testing

extension Integration {
    /// The page-table filter in a whole session.
    @Suite(.serialized, .needs64Bit)
    struct FilterSessionTests {
        static let arguments = ["--agents", "pt-filter", "--allow-visible-patches", "--format", "json"]
        /// More rounds than the test will see: the kernel's writers can be found as long as they write.
        static let endlessRemapping = "remap 100000000"

        /// A page of the kernel's code that neither a page-table write nor the gate's handler lies in: a copy that the
        /// guest was about to make of one would have its patches.
        static func page(of guest: BundledGuestMachine) throws -> UInt64 {
            var pages: [String: UInt64] = [:]
            for line in try guest.console.run("symbols").lines {
                let words = line.split(separator: " ").map(String.init)
                if words.count == 2, let address = UInt64(words[1].dropFirst(2), radix: 16) {
                    pages[words[0]] = address & ~0xfff
                }
            }
            let writers = ["MiWritePte", "MiExchangePte", "MiChangePte"].compactMap { pages[$0] }
            try #require(writers.count == 3)
            let machine = try QEMUMachine(QEMUTarget(guest.operatorSocket), guardianCommand: nil)
            let gate = try InterruptGateCheck.handler(
                of: PageTableWriter.vector, on: try machine.processorTables(),
                in: try GuestSurvey(machine, patterns: []).kernel)
            return try #require(
                ["KeBugCheckEx", "KeBugCheck2", "KiPageFault"].compactMap { pages[$0] }.first {
                    !writers.contains($0) && $0 != gate.page.rawValue
                })
        }

        @Test(
            "Translation changes of protected pages are told without a stop, whichever instruction makes them",
            arguments: [1, 2, 4])
        func tells(_ processors: Int) throws {
            let guest = try AgentTests.guest(processors)
            let page = try Self.page(of: guest)
            try guest.console.run("load on calls")
            _ = try guest.console.start(Self.endlessRemapping)
            let vigil = try VigilProcess(["attach", guest.target, "--protect", "kernel-code"] + Self.arguments)
            #expect(try vigil.event("agent-deployed").string("agent") == "pt-filter")
            // Who moves pages was not at work yet, and is found by what it does: not at the first time.
            let end = ContinuousClock.now + .seconds(60)
            while !vigil.outputText.contains("translation-changed") || !vigil.outputText.contains("violation") {
                try #require(ContinuousClock.now < end, "not told: \(vigil.outputText)")
                try #require(try guest.console.run("move 0x\(String(page, radix: 16))").isOK)
            }
            let change = try vigil.event("translation-changed")
            #expect(change.int("level") == 1 && change.string("old") != change.string("new"))
            let call = try guest.console.start("power kernel 7 4 0")
            // It goes, whether it has just been put there or not.
            _ = try vigil.event("outcome")
            #expect(try guest.console.reply(to: call)["status"] == 0)
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            try guest.console.run("load off")
            #expect(try AgentTests.blocks(guest) == 0)
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
        }

        @Test(
            "The filter is deployed when the kernel's writers are known, taken out before a transition, and back after it",
            arguments: [1, 2])
        func deploys(_ processors: Int) throws {
            let guest = try AgentTests.guest(processors)
            try guest.console.run("load on calls")
            _ = try guest.console.start(Self.endlessRemapping)
            let vigil = try VigilProcess(["attach", guest.target, "--protect", "kernel-code"] + Self.arguments)
            #expect(try vigil.event("agent-deployed").string("agent") == "pt-filter")
            let call = try guest.console.start("power kernel 7 4 0")
            #expect(try vigil.event("agent-withdrawn").string("agent") == "pt-filter")
            _ = try vigil.event("outcome")
            #expect(try guest.console.reply(to: call)["status"] == 0)
            _ = try vigil.event("agent-deployed")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            try guest.console.run("load off")
            #expect(try AgentTests.blocks(guest) == 0)
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
        }

        @Test("It is refused where its patches can be seen, with a sentence and a code of its own")
        func refused() throws {
            let guest = try AgentTests.guest(1)
            let vigil = try VigilProcess(["attach", guest.target, "--agents", "pt-filter"])
            _ = try vigil.errorLine(containing: "is not deployed without --allow-visible-patches")
            #expect(vigil.exitStatus() == 13)
        }

        @Test(
            "A killed or stopped Vigil's filter is taken out of the code by the guardian, and leaves by itself",
            arguments: [SIGKILL, SIGSTOP], [1, 2])
        func killed(_ signal: Int32, _ processors: Int) throws {
            let guest = try AgentTests.guest(processors)
            try guest.console.run("load on calls")
            _ = try guest.console.start(Self.endlessRemapping)
            let vigil = try VigilProcess(["attach", guest.target] + Self.arguments)
            _ = try vigil.event("agent-deployed")
            vigil.send(signal)
            while try AgentTests.blocks(guest) != 0 {}
            if signal == SIGSTOP { vigil.send(SIGCONT) }
            #expect(vigil.exitStatus() != 0)
            try guest.console.run("load off")
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
            try guest.expectNothingLeft()
        }
    }
}
