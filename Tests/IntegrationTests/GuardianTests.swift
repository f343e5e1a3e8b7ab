import BundledGuest
import Foundation
import Testing

extension Integration {
    /// Vigil dies, or stands still, at the worst moments; its guardian leaves a clean guest.
    @Suite(.serialized)
    struct GuardianTests {
        enum Death: String, CaseIterable {
            case killed
            case stopped

            var signal: Int32 { self == .killed ? SIGKILL : SIGSTOP }
        }

        /// Lets Vigil die and waits for the guardian's word.
        private func end(_ vigil: VigilProcess, by death: Death) throws {
            vigil.send(death.signal)
            try vigil.expectGuardianActed()
            if death == .stopped { vigil.expectAware() }
        }

        /// Waits until a caller is in the handler: the guest's own check of its code sees it.
        private func waitForHandler(in guest: BundledGuestMachine) throws {
            while try guest.console.run("check").result.hasPrefix("ok clean") {}
        }

        @Test("Vigil dies while armed, and nothing of it is left", arguments: Death.allCases)
        func armed(_ death: Death) throws {
            let guest = try BundledGuestMachine.ready()
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            _ = try vigil.event("attached")
            try end(vigil, by: death)
            try guest.expectNothingLeft()
        }

        /// How a held caller waits.
        enum Waiting: CaseIterable {
            case inDelay, inHandler

            /// The handler is for 64-bit kernels.
            static var tested: [Self] { GuestConfiguration.is32Bit ? [.inDelay] : allCases }

            var arguments: [String] { self == .inHandler ? ["--allow-visible-patches"] : [] }
        }

        private func waitForHold(in guest: BundledGuestMachine, _ waiting: Waiting) throws {
            switch waiting {
            case .inHandler: try waitForHandler(in: guest)
            // A caller is sent off in the stop that reports it: the guest runs again, so it is.
            case .inDelay: try guest.console.run("counts")
            }
        }

        @Test(
            "Vigil dies while it holds a caller, which goes on with the registers it had",
            arguments: Death.allCases, Waiting.tested)
        func held(_ death: Death, _ waiting: Waiting) throws {
            let guest = try BundledGuestMachine.ready()
            try guest.console.run("refuse on")
            let vigil = try VigilProcess(
                ["attach", guest.target, "--hold", "9000", "--format", "json"] + waiting.arguments)
            _ = try vigil.event("attached")
            let call = try guest.console.start("power user 5 6 0")
            _ = try vigil.event("transition-requested")
            try waitForHold(in: guest, waiting)
            try end(vigil, by: death)
            // The guest itself compares the registers that a call must keep; the arguments reached the drivers.
            #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3)
            try guest.expectNothingLeft()
        }

        @Test("Vigil dies while it watches for returns, and the calls return unseen", arguments: Death.allCases)
        func beforeReturn(_ death: Death) throws {
            let guest = try BundledGuestMachine.ready()
            try guest.console.run("refuse on")
            // The guest's clock does not stand still while the guardian waits for a sign of life.
            try guest.console.run("slow 3000")
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            _ = try vigil.event("attached")
            let call = try guest.console.start("power user 5 6 0")
            _ = try vigil.event("transition-requested")
            try end(vigil, by: death)
            #expect(try guest.console.replyIfThere(to: call) == nil, "the call returned too early to prove anything")
            #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3)
            try guest.console.run("slow 1")
            try guest.expectNothingLeft()
        }

        @Test("When its guardian dies, Vigil leaves in good order and says so")
        func guardianDies() throws {
            let guest = try BundledGuestMachine.ready()
            try guest.console.run("refuse on")
            let vigil = try VigilProcess(["attach", guest.target, "--hold", "9000", "--format", "json"])
            _ = try vigil.event("attached")
            let call = try guest.console.start("power user 5 6 0")
            _ = try vigil.event("transition-requested")
            for child in try vigil.children { kill(child, SIGKILL) }
            #expect(vigil.exitStatus() == 10)
            #expect(vigil.errorText.contains("guardian process ended"))
            #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3)
            try guest.expectNothingLeft()
        }

        @Test("With Vigil and its guardian dead, a held caller goes by itself when its lease ends", .needs64Bit)
        func leaseEnds() throws {
            let guest = try BundledGuestMachine.ready()
            try guest.console.run("refuse on")
            let vigil = try VigilProcess(
                ["attach", guest.target, "--hold", "9000", "--format", "json", "--allow-visible-patches"])
            _ = try vigil.event("attached")
            let before = try #require(try guest.console.run("counts")["entries"])
            let call = try guest.console.start("power kernel 5 6 0")
            _ = try vigil.event("transition-requested")
            try waitForHandler(in: guest)
            let start = try #require(try guest.console.run("time")["interrupt-time"])
            for child in try vigil.children { kill(child, SIGKILL) }
            vigil.send(SIGKILL)
            _ = vigil.exitStatus()

            // The breakpoint at the entry, which nobody removed, stops the guest when the caller comes back.
            let seen = try Operator(guest)
            while try seen.runState() == .running { seen.waitForEvent() }
            #expect(try seen.runState() == .stoppedByDebugger)
            // Its owners are dead, so the operator takes it out: a new stub, and a detach clears all.
            try seen.clearBreakpointsByDetaching()
            #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3)
            let end = try #require(try guest.console.run("time")["interrupt-time"])
            #expect(end - start >= 1_700_0000, "the lease is two seconds, less what had passed since its last renewal")
            #expect(try guest.console.run("counts")["entries"] == before + 1)
        }
    }
}
