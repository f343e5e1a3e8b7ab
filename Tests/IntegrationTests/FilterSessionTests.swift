import BundledGuest
import Foundation
import Testing

extension Integration {
    /// The page-table filter in a whole session.
    @Suite(.serialized)
    struct FilterSessionTests {
        static let arguments = ["--agents", "pt-filter", "--allow-visible-patches", "--format", "json"]

        @Test(
            "The filter is deployed when the kernel's writers are known, taken out before a transition, and back after it",
            arguments: [1, 2])
        func deploys(_ processors: Int) throws {
            let guest = try AgentTests.guest(processors)
            try guest.console.run("load on calls")
            _ = try guest.console.start("remap \(200_000 / (processors * processors * processors))")
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
            _ = try guest.console.start("remap \(200_000 / (processors * processors * processors))")
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
