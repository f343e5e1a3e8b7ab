import BundledGuest
import Foundation
import Testing

extension Integration {
    /// What is another matter in guests of 32 bits.
    @Suite(.serialized, .enabled(if: GuestConfiguration.is32Bit, "the tested guest has 64 bits"))
    struct NarrowGuestTests {
        @Test("Agents are refused before anything is stopped, and one that is wished for later fails alone")
        func agents() throws {
            let guest = try BundledGuestMachine.ready()
            for agent in ["heartbeat", "pt-filter"] {
                let result = try VigilProcess.run(
                    "attach", guest.target, "--agents", agent, "--allow-visible-patches")
                #expect(result.status == 13 && result.errors.contains("for 64-bit kernels"), "\(result)")
            }
            let input = Pipe()
            let vigil = try VigilProcess(
                ["attach", guest.target, "--commands", "--protect", "interrupt-tables", "--format", "json"],
                input: input)
            _ = try vigil.event("attached")
            try input.fileHandleForWriting.write(contentsOf: Data("agent heartbeat on\n".utf8))
            #expect(try vigil.event("agent-failed").string("agent") == "heartbeat")
            try BootTests.expectArmed(vigil, guest)
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            try guest.expectNothingLeft()
        }

        @Test(
            "A caller that is held waits without a byte written, whatever is allowed; a call by INT 2Eh is one like others"
        )
        func waits() throws {
            let guest = try BundledGuestMachine.ready()
            try guest.console.run("refuse on")
            let vigil = try VigilProcess(
                ["attach", guest.target, "--allow-visible-patches", "--hold", "400", "--format", "json"])
            _ = try vigil.event("attached")
            for who in ["user", "user-interrupt", "kernel", "kernel-direct"] {
                let call = try guest.console.start("power \(who) 5 6 0")
                _ = try vigil.event("transition-requested")
                #expect(try guest.console.run("check").result.hasPrefix("ok clean"), "\(who)")
                #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3)
                #expect(try vigil.event("held").int("microseconds").map { $0 >= 400_000 } == true)
                #expect(try vigil.event("outcome").string("result") == "refused")
            }
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            try guest.expectNothingLeft()
        }
    }
}
