import BundledGuest
import Foundation
import Testing

@testable import QEMUHypervisor

extension Integration {
    /// The inline detour's jump is not in the kernel when a transition begins, nor in a hibernation image. None of the
    /// engine's own bookkeeping is asked.
    @Suite(.serialized)
    struct WithdrawnDetourTests {
        /// Where the function and the jump's handler lie, as an operator and the disk see them.
        private struct Places {
            static let functionLength = 32
            static let handlerLength = 64
            /// Guest/common/hibernation.h: a header's sector, and memory from 1 MiB on.
            static let imageStart = 512 - 0x10_0000

            var function: UInt64
            var functionPhysical: Int
            var handlerPhysical: Int

            func function(in memory: Data, start: Int = 0) -> Data {
                memory.subdata(in: functionPhysical + start..<functionPhysical + start + Self.functionLength)
            }

            func handler(in memory: Data, start: Int = 0) -> Data {
                memory.subdata(in: handlerPhysical + start..<handlerPhysical + start + Self.handlerLength)
            }
        }

        private func attach(_ guest: BundledGuestMachine, _ more: String...) throws -> VigilProcess {
            let vigil = try VigilProcess(
                ["attach", guest.target, "--format", "json", "--intercept", "detour", "--allow-visible-patches"] + more)
            let attached = try vigil.event("attached")
            #expect(attached.string("mechanism") == "inline-detour")
            return vigil
        }

        /// A guest whose power function is in memory, which looks at its code when it is asked for a transition and
        /// when it is back.
        private func guest(_ configuration: GuestConfiguration) throws -> BundledGuestMachine {
            let guest = try BundledGuestMachine.ready(configuration)
            try prepare(guest)
            return guest
        }

        private func prepare(_ guest: BundledGuestMachine) throws {
            try guest.console.run("refuse on")
            #expect(try guest.console.run("power kernel 5 6 0")["status"] == 0xC000_02D3)
            try guest.console.run("refuse off")
            try guest.console.run("guard resume")
            try guest.console.run("load on")
            #expect(try guest.console.run("watch power on").result == "ok watch=on")
        }

        private func configuration(_ processors: Int, disk: TemporaryDisk? = nil) -> GuestConfiguration {
            var configuration = GuestConfiguration.tested
            configuration.disk = disk?.path
            configuration.extraArguments = ["-smp", String(processors)]
            return configuration
        }

        private func places(_ guest: BundledGuestMachine, _ seen: Operator) throws -> Places {
            let inspected = try VigilProcess.run("inspect", guest.target, "--format", "json")
            let event = try #require(VigilEvent(inspected.output))
            func address(_ member: String) throws -> UInt64 {
                let text = try #require(event.string(member), "\(inspected.output)")
                return try #require(UInt64(text.dropFirst(2), radix: 16))
            }
            func physical(_ address: UInt64) throws -> Int {
                let text = try seen.qmp.monitor("gva2gpa 0x\(String(address, radix: 16))")
                let digits = try #require(text.split(separator: " ").last?.dropFirst(2))
                return try #require(Int(digits.trimmingCharacters(in: .whitespacesAndNewlines), radix: 16))
            }
            let function = try address("powerFunction")
            return Places(
                function: function, functionPhysical: try physical(function),
                handlerPhysical: try physical(try address("detour")))
        }

        private func expectClean(_ guest: BundledGuestMachine, _ context: String) throws {
            let line = try guest.console.waitForLine(containing: "! seen ")
            #expect(line.hasPrefix("! seen code=clean "), "\(context): \(line)")
        }

        @Test(
            "Whatever is asked for, the guest finds its code as it was, and after each outcome the jump is there again",
            arguments: [1, 2, 4])
        func seenByTheGuest(_ processors: Int) throws {
            let disk = try TemporaryDisk()
            let guest = try guest(configuration(processors, disk: disk))
            let seen = try Operator(path: guest.operatorSocket)
            let places = try places(guest, seen)
            let vigil = try attach(guest, "--hold", "20")
            var calls: UInt64 = 0
            for request in ["kernel 2 4 0", "user 2 4 0", "kernel-direct 2 4 0", "user 2 5 0"] {
                for refuses in [true, false] {
                    #expect(try seen.code(at: places.function, count: 1) == [0xe9], "\(request)")
                    try guest.console.run(refuses ? "refuse on" : "refuse off")
                    let call = try guest.console.start("power \(request)")
                    try expectClean(guest, request)
                    if !refuses {
                        while try seen.runState() != .suspended { seen.waitForEvent() }
                        try seen.command("system_wakeup")
                    }
                    #expect(try guest.console.reply(to: call)["status"] == (refuses ? 0xC000_02D3 : 0))
                    let outcome = try vigil.event("outcome")
                    #expect(outcome.string("result") == (refuses ? "refused" : "resumed"), "\(request)")
                    calls += 1
                }
            }
            // Two at once: the second one comes by the breakpoint.
            try guest.console.run("refuse on")
            let both = try ["user", "kernel"].map { try guest.console.start("power \($0) 5 6 0") }
            for call in both { #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3) }
            for _ in both { #expect(try vigil.event("outcome").string("result") == "refused") }
            #expect(try guest.console.run("seen").result == "ok code=clean blocks=0 calls=\(calls + 2)")
            #expect(try seen.code(at: places.function, count: 1) == [0xe9])
            try guest.console.run("refuse off")
            _ = try guest.console.start("power user 5 6 0")
            try expectClean(guest, "reboot")
            #expect(try vigil.event("outcome").string("result") == "reset")
            #expect(!vigil.outputText.contains("\"warning\""), "\(vigil.outputText)")
        }

        @Test(
            "The hibernation image on the disk has the function's own bytes, and zeroes where the handler was",
            arguments: [1, 2])
        func image(_ processors: Int) throws {
            let disk = try TemporaryDisk()
            let call: Int
            let places: Places
            let original: Data
            do {
                let guest = try guest(configuration(processors, disk: disk))
                let seen = try Operator(path: guest.operatorSocket)
                places = try self.places(guest, seen)
                original = places.function(in: Data(try seen.memory()))
                let vigil = try GuestConfiguration.is32Bit ? attach(guest) : attach(guest, "--agents", "heartbeat")
                if !GuestConfiguration.is32Bit { _ = try vigil.event("agent-deployed") }
                // While it is armed, both are where the disk is looked at afterwards.
                let armed = Data(try seen.memory())
                #expect(places.function(in: armed).first == 0xe9)
                #expect(places.handler(in: armed) != Data(count: Places.handlerLength))
                call = try guest.console.start("power user 3 5 0")
                try expectClean(guest, "hibernation")
                #expect(try vigil.event("outcome").string("result") == "hibernated")
                #expect(vigil.exitStatus() == 0, "\(vigil.errorText)")
                #expect(!vigil.outputText.contains("\"warning\""), "\(vigil.outputText)")
                guest.process.waitForExit()
            }
            let image = try Data(contentsOf: URL(fileURLWithPath: disk.path))
            #expect(image.prefix(8) == Data("VGLHIBR1".utf8), "there is an image")
            #expect(places.function(in: image, start: Places.imageStart) == original)
            #expect(places.handler(in: image, start: Places.imageStart) == Data(count: Places.handlerLength))

            let guest = try BundledGuestMachine(configuration(processors, disk: disk))
            _ = try guest.console.waitForLine(containing: "! awake")
            #expect(try guest.console.reply(to: call)["status"] == 0)
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
            // A function with a jump in it would be refused.
            let vigil = try attach(guest)
            try guest.console.run("refuse on")
            #expect(try guest.console.run("power user 5 6 0")["status"] == 0xC000_02D3)
            #expect(try vigil.event("outcome").string("result") == "refused")
            vigil.send(SIGTERM)
            #expect(vigil.exitStatus() == 0)
            #expect(try vigil.event("detached").string("handlerLeft") == nil)
            try guest.console.run("load off")
            try guest.expectNothingLeft()
        }

        @Test("Vigil dies while a transition is under way without the jump: the guest goes on, and nothing is left")
        func dies() throws {
            let guest = try guest(configuration(1))
            let seen = try Operator(path: guest.operatorSocket)
            let places = try places(guest, seen)
            let original = try seen.code(at: places.function, count: Places.functionLength)
            let vigil = try attach(guest)
            let call = try guest.console.start("power user 2 4 0")
            try expectClean(guest, "sleep")
            while try seen.runState() != .suspended { seen.waitForEvent() }
            vigil.send(SIGKILL)
            try vigil.expectGuardianActed()
            #expect(try seen.code(at: places.function, count: Places.functionLength) == original)
            try seen.command("system_wakeup")
            #expect(try guest.console.reply(to: call)["status"] == 0)
            try guest.console.run("load off")
            try guest.expectNothingLeft()
        }
    }
}
