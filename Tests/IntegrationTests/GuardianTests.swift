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
            _ = try vigil.errorLine(containing: "vigil guardian:")
            guard death == .stopped else { return }
            // Whoever lets a stopped Vigil go on finds it knowing that it is out of the game.
            vigil.send(SIGCONT)
            #expect(vigil.exitStatus() == 10)
            #expect(vigil.errorText.contains("the guardian took over"))
        }

        @Test("Vigil dies while armed, and nothing of it is left", arguments: Death.allCases)
        func armed(_ death: Death) throws {
            let guest = try BundledGuestMachine.ready()
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            _ = try vigil.event("attached")
            try end(vigil, by: death)
            try guest.expectNothingLeft()
        }

        @Test("Vigil dies while it holds a caller, which goes on with the registers it had", arguments: Death.allCases)
        func held(_ death: Death) throws {
            let guest = try BundledGuestMachine.ready()
            try guest.console.run("refuse on")
            let vigil = try VigilProcess(["attach", guest.target, "--hold", "9000", "--format", "json"])
            _ = try vigil.event("attached")
            let call = try guest.console.start("power user 5 6 0")
            _ = try vigil.event("transition-requested")
            // The handler is there while the caller waits in it: the guest's own check sees it.
            while try guest.console.run("check").result.hasPrefix("ok clean") {}
            try end(vigil, by: death)
            // The guest itself compares the registers that a call must keep, and its arguments took effect.
            #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3)
            try guest.expectNothingLeft()
        }
    }
}
