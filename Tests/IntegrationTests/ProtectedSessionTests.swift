import BundledGuest
import Foundation
import Testing

extension Integration {
    /// Protections and agents of a whole session, over transitions.
    @Suite(.serialized, .needs64Bit)
    struct ProtectedSessionTests {
        static let all = ["kernel-code", "interrupt-tables", "service-tables", "user-code"]

        @Test(
            "Each attack is reported, once, and what looks like it is not",
            arguments: [
                ("code", "kernel-code"), ("translation", "kernel-code"), ("idt", "interrupt-tables"),
                ("service", "service-tables"), ("ntdll", "user-code"), ("region", "user-code"),
            ])
        func reports(_ attack: String, _ protection: String) throws {
            let guest = try AgentTests.guest(2)
            try guest.console.run("load on")
            let vigil = try VigilProcess(
                ["attach", guest.target, "--format", "json", "--agents", "heartbeat", "--process", "app.exe"]
                    + ["--protect"] + Self.all)
            for _ in Self.all { _ = try vigil.event("protections-armed") }
            try guest.console.run("near \(attack)")
            let answer = try guest.console.run("attack \(attack)")
            let violation = try vigil.event("violation")
            #expect(violation.string("protection") == protection)
            #expect(violation.string("where").flatMap { UInt64($0.dropFirst(2), radix: 16) } != nil)
            #expect(answer.isOK)
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            #expect(vigil.outputText.components(separatedBy: "\"violation\"").count == 2)
        }

        @Test("Hibernation refused by a driver: protection is off in between, tampering is found, all is back once")
        func refusedHibernation() throws {
            let guest = try AgentTests.guest(1)
            try guest.console.run("busy on")
            try guest.console.run("refuse on")
            // The driver thinks for so long that something can happen meanwhile.
            try guest.console.run("slow 1500")
            let vigil = try VigilProcess([
                "attach", guest.target, "--format", "json", "--protect", "kernel-code", "--agents", "heartbeat",
            ])
            _ = try vigil.event("protections-armed")
            _ = try vigil.event("agent-deployed")
            let call = try guest.console.start("power kernel 3 5 0")
            #expect(try vigil.event("protections-disarmed").int("request") == 1)
            _ = try vigil.event("agent-withdrawn")
            try guest.console.run("attack code")
            // Looking goes on while the kernel can still turn back.
            #expect(try vigil.event("violation").string("protection") == "kernel-code")
            #expect(try vigil.event("outcome").string("result") == "refused")
            #expect(try vigil.event("protections-armed").int("request") == 1)
            _ = try vigil.event("agent-deployed")
            #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3)
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            #expect(vigil.outputText.components(separatedBy: "\"violation\"").count == 2)
        }

        @Test("Configuration changes at run time, is refused during a hibernation, and possible again after it")
        func wishes() throws {
            let guest = try AgentTests.guest(1)
            try guest.console.run("busy on")
            try guest.console.run("refuse on")
            try guest.console.run("slow 1500")
            let input = Pipe()
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json", "--commands"], input: input)
            func say(_ line: String) { input.fileHandleForWriting.write(Data((line + "\n").utf8)) }
            _ = try vigil.event("attached")
            say("protect kernel-code on")
            #expect(try vigil.event("protections-armed").strings("protections") == ["kernel-code"])
            say("agent heartbeat on")
            _ = try vigil.event("agent-deployed")
            say("agent heartbeat off")
            #expect(try vigil.event("agent-withdrawn").string("how") == "system-call")
            #expect(try AgentTests.blocks(guest) == 0)
            say("agent heartbeat on")
            _ = try vigil.event("agent-deployed")
            let call = try guest.console.start("power kernel 3 5 0")
            _ = try vigil.event("protections-disarmed")
            say("protect service-tables on")
            #expect(try vigil.event("refused").string("reason")?.contains("power transition") == true)
            _ = try vigil.event("protections-armed")
            _ = try vigil.event("agent-deployed")
            say("protect service-tables on")
            #expect(try vigil.event("protections-armed").strings("protections") == ["service-tables"])
            say("nonsense")
            _ = try vigil.errorLine(containing: "\"nonsense\" is no command")
            _ = try guest.console.reply(to: call)
            // The host's own notices: one by one, doubled, stray.
            say("notice sleep")
            #expect(try vigil.event("agent-withdrawn").string("how") == "system-call")
            say("notice sleep")
            _ = try vigil.event("warning")
            say("notice resume")
            _ = try vigil.event("agent-deployed")
            say("notice resume")
            _ = try vigil.event("warning")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            #expect(try AgentTests.blocks(guest) == 0)
        }
    }
}
