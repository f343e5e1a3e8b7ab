import BundledGuest
import Foundation
import Testing

extension Integration {
    /// Whatever way leads to the guest's memory and its debug connection, the same is seen.
    @Suite(.serialized)
    struct TransportTests {
        private func expectWholeSession(
            _ configuration: GuestConfiguration, memory: String, sourceLocation: SourceLocation = #_sourceLocation
        ) throws {
            let guest = try BundledGuestMachine.ready(configuration)
            let vigil = try VigilProcess(["attach", guest.target, "--hold", "100", "--format", "json"])
            let attached = try vigil.event("attached")
            #expect(attached.string("memory")?.contains(memory) == true, "\(attached)", sourceLocation: sourceLocation)
            try guest.console.run("refuse on")
            let reply = try guest.console.run("power user 4 6 0")
            #expect(reply["status"] == 0xC000_02D3, sourceLocation: sourceLocation)
            let request = try vigil.event("transition-requested")
            #expect(request.string("transition") == "shutdown", sourceLocation: sourceLocation)
            let held = try vigil.event("held")
            #expect((held.int("microseconds") ?? 0) >= 100_000, sourceLocation: sourceLocation)
            #expect(try vigil.event("released").string("reason") == "hold-over", sourceLocation: sourceLocation)
            #expect(try vigil.event("outcome").string("status") == "0xC00002D3", sourceLocation: sourceLocation)
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0, sourceLocation: sourceLocation)
            try guest.expectNothingLeft(sourceLocation: sourceLocation)
        }

        @Test("RAM that QEMU shares is mapped")
        func shared() throws { try expectWholeSession(GuestConfiguration.tested, memory: "mapped") }

        @Test("RAM that QEMU does not share is read from its process")
        func privateMemory() throws {
            var configuration = GuestConfiguration.tested
            configuration.sharesMemory = false
            try expectWholeSession(configuration, memory: "process memory")
        }

        @Test("Over TCP, RAM comes from the monitor and the debug connection is a loopback port")
        func tcp() throws {
            var configuration = GuestConfiguration.tested
            configuration.usesTCP = true
            try expectWholeSession(configuration, memory: "monitor")
        }

        @Test("vCPUs that the guest has not started do no harm")
        func idleProcessors() throws {
            var configuration = GuestConfiguration.tested
            configuration.extraArguments = ["-smp", "3"]
            try expectWholeSession(configuration, memory: "mapped")
        }

        @Test("Machine type q35 works as pc does")
        func q35() throws {
            var configuration = GuestConfiguration.tested
            configuration.machine = "q35"
            try expectWholeSession(configuration, memory: "mapped")
        }
    }
}
