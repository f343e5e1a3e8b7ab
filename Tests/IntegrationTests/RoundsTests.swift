import BundledGuest
import Foundation
import TestSupport
import Testing

extension Integration {
    /// All transitions in random order, over and over: a guest's life.
    @Suite(.serialized)
    struct RoundsTests {
        enum Round: String, CaseIterable {
            case sleep, hibernation, reboot, shutdown, refusal

            var command: String {
                switch self {
                case .sleep: "2 4 0"
                case .hibernation: "3 5 0"
                case .reboot: "5 6 0"
                case .shutdown, .refusal: "6 6 0"
                }
            }

            var transition: String {
                switch self {
                case .sleep: "sleep"
                case .hibernation: "hibernate"
                case .reboot: "reboot"
                case .shutdown, .refusal: "shutdown"
                }
            }

            var result: String {
                switch self {
                case .sleep: "resumed"
                case .hibernation: "hibernated"
                case .reboot: "reset"
                case .shutdown: "powered-off"
                case .refusal: "refused"
                }
            }

            /// The call comes back in the same QEMU.
            var returns: Bool { self == .sleep || self == .refusal }
            var endsQEMU: Bool { self == .hibernation || self == .shutdown }
        }

        /// A guest under load with its check on, Vigil attached, and what Vigil's counts must come to.
        private final class Life {
            let configuration: GuestConfiguration
            var guest: BundledGuestMachine
            private(set) var vigil: VigilProcess
            /// Of calls that returned, or went down, since Vigil attached; and what the guest had counted before.
            private var entries: UInt64 = 0
            private var returns: UInt64 = 0
            private var baseEntries: UInt64 = 0
            private var baseReturns: UInt64 = 0

            init(_ configuration: GuestConfiguration) throws {
                self.configuration = configuration
                guest = try BundledGuestMachine.ready(configuration)
                vigil = try Self.attach(guest)
                try prepare()
            }

            static func attach(_ guest: BundledGuestMachine) throws -> VigilProcess {
                let vigil = try VigilProcess(["attach", guest.target, "--hold", "30", "--format", "json"])
                _ = try vigil.event("attached")
                return vigil
            }

            /// Load and check, which a boot begins without; and where the guest's counts begin.
            func prepare() throws {
                try guest.console.run("load on")
                try guest.console.run("guard on")
                try noteBase()
            }

            private func noteBase() throws {
                let counts = try guest.console.run("counts")
                baseEntries = try #require(counts["entries"])
                baseReturns = try #require(counts["returns"])
            }

            /// Adds what the guest counted since the last time, and a call that will not come back.
            func settle(lost: UInt64 = 0) throws {
                let counts = try guest.console.run("counts")
                entries += try #require(counts["entries"]) - baseEntries + lost
                returns += try #require(counts["returns"]) - baseReturns
                (baseEntries, baseReturns) = (try #require(counts["entries"]), try #require(counts["returns"]))
            }

            /// Vigil has ended, or is told to: its counts are the guest's.
            func compare(_ context: String) throws {
                let end = try vigil.event("detached")
                #expect(vigil.exitStatus() == 0, "\(context): \(vigil.errorText)")
                #expect(end.int("entries").map(UInt64.init) == entries, "\(context): \(vigil.outputText)")
                #expect(end.int("returns").map(UInt64.init) == returns, "\(context): \(vigil.outputText)")
                (entries, returns) = (0, 0)
            }

            /// - Parameter call: the call that hibernated the guest; it returns in the new QEMU. Nil for a new boot.
            func comeBack(from call: Int?) throws {
                guest = try BundledGuestMachine(configuration)
                if let call {
                    _ = try guest.console.waitForLine(containing: "! awake")
                    // Nobody watched that return.
                    #expect(try guest.console.reply(to: call)["status"] == 0)
                    try noteBase()
                } else {
                    try guest.waitUntilReady()
                }
                vigil = try Self.attach(guest)
                if call == nil { try prepare() } else { _ = try vigil.event("awoken") }
            }
        }

        @Test(
            "Twenty rounds of all transitions under load and check: every outcome is seen, the guest's counts are Vigil's",
            arguments: [1, 2, 4])
        func rounds(_ processors: Int) throws {
            let disk = try TemporaryDisk()
            var configuration = GuestConfiguration.tested
            configuration.extraArguments = [
                "-smp", String(processors), "-drive", "file=\(disk.path),format=raw,if=ide",
            ]
            var random = SeededGenerator(seed: 0x5eed_0100 + UInt64(processors))
            // Each kind four times, so that no seed leaves one out.
            let order = Array(repeating: Round.allCases, count: 4).joined().shuffled(using: &random)
            let life = try Life(configuration)
            for (number, round) in order.enumerated() {
                let isUser = Bool.random(using: &random)
                let context = "round \(number), \(round), \(isUser ? "user" : "kernel"), of \(order)"
                try life.guest.console.run(round == .refusal ? "refuse on" : "refuse off")
                if !round.returns { try life.settle(lost: isUser ? 2 : 1) }
                let seen = try Operator(path: life.guest.operatorSocket)
                let call = try life.guest.console.start("power \(isUser ? "user" : "kernel") \(round.command)")
                let request = try life.vigil.event("transition-requested")
                #expect(request.string("transition") == round.transition, "\(context)")
                if round == .sleep {
                    while try seen.runState() != .suspended { seen.waitForEvent() }
                    try seen.command("system_wakeup")
                }
                let outcome = try life.vigil.event("outcome")
                #expect(outcome.string("result") == round.result, "\(context): \(outcome)")
                if round.returns {
                    let status = try life.guest.console.reply(to: call)["status"]
                    #expect(status == (round == .refusal ? 0xC000_02D3 : 0), "\(context)")
                } else if round.endsQEMU {
                    try life.compare(context)
                    try life.comeBack(from: round == .hibernation ? call : nil)
                } else {
                    try life.guest.waitUntilReady()
                    _ = try life.vigil.event("attached")
                    try life.prepare()
                }
                // A bug check would have ended it.
                let check = try life.guest.console.run("check").result
                #expect(check.hasPrefix("ok clean"), "\(context): \(check)")
            }
            try life.guest.console.run("load off")
            try life.settle()
            life.vigil.send(SIGINT)
            try life.compare("at the end")
        }
    }
}
