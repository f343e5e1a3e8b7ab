import BundledGuest
import Foundation
import Testing

extension Integration {
    /// A guest that comes up, again and again, and Vigil's place in that.
    @Suite(.serialized)
    struct BootTests {
        /// Expects Vigil to see the guest's next request.
        static func expectArmed(_ vigil: VigilProcess, _ guest: BundledGuestMachine) throws {
            try guest.console.run("refuse on")
            try guest.console.run("power user 5 6 0")
            #expect(try vigil.event("outcome").string("result") == "refused")
        }

        @Test(
            "Attached at any moment of a boot, from the firmware on, Vigil arms the kernel when it is there",
            arguments: [0, 50, 100, 150, 200, 250, 300, 400])
        func duringBoot(milliseconds: Int) throws {
            let guest = try BundledGuestMachine(.tested)
            try guest.waitForSocket()
            // Any moment will do: there is nothing to wait for.
            usleep(UInt32(milliseconds) * 1000)
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            _ = try vigil.event("attached")
            try guest.waitUntilReady()
            try Self.expectArmed(vigil, guest)
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            try guest.expectNothingLeft()
        }

        @Test("Attached while a reset is under way, Vigil arms the kernel that comes up", arguments: [0, 20, 60, 150])
        func duringReset(milliseconds: Int) throws {
            let guest = try BundledGuestMachine.ready()
            try Operator(path: guest.operatorSocket).command("system_reset")
            usleep(UInt32(milliseconds) * 1000)
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            try guest.waitUntilReady()
            try guest.console.run("refuse on")
            // Where the old kernel was still there for an instant, it is the second that counts.
            _ = try vigil.event("attached")
            var answer = try guest.console.run("power user 5 6 0")
            for _ in 0..<50 where !vigil.outputText.contains("\"outcome\"") {
                usleep(100_000)
                answer = try guest.console.run("power user 5 6 0")
            }
            #expect(answer["status"] == 0xC000_02D3)
            #expect(try vigil.event("outcome").string("result") == "refused")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            try guest.expectNothingLeft()
        }

        @Test(
            "A guest that is reset ten times in a row, by itself and by its host, is armed each time",
            arguments: [1, 2])
        func tenResets(vcpus: Int) throws {
            var configuration = GuestConfiguration.tested
            configuration.extraArguments = ["-smp", String(vcpus)]
            let guest = try BundledGuestMachine(configuration)
            try guest.waitUntilReady()
            let vigil = try VigilProcess(["attach", guest.target, "--protect", "kernel-code", "--format", "json"])
            var bases = [try vigil.event("attached").string("kernelBase")]
            var calls = 0
            for number in 1...10 {
                if number % 2 == 0 {
                    _ = try guest.console.start("power user 5 6 0")
                    #expect(try vigil.event("outcome").string("result") == "reset")
                    calls += 2
                } else {
                    try Operator(path: guest.operatorSocket).command("system_reset")
                    #expect(try vigil.event("unannounced").string("what") == "reset")
                }
                bases.append(try vigil.event("attached").string("kernelBase"))
                #expect(try vigil.event("protections-armed").strings("protections") == ["kernel-code"])
                try guest.waitUntilReady()
                try Self.expectArmed(vigil, guest)
                try guest.console.run("refuse off")
                calls += 2
            }
            vigil.send(SIGINT)
            let end = try vigil.event("detached")
            #expect(vigil.exitStatus() == 0)
            // A user's call and the kernel's own, each time, and nothing that is still open.
            #expect(end.int("entries") == calls && end.int("openTransitions") == 0, "\(end)")
            #expect(Set(bases).count > 5)
            #expect(!vigil.outputText.contains("\"warning\"") && !vigil.outputText.contains("\"violation\""))
            try guest.expectNothingLeft()
        }
    }
}
