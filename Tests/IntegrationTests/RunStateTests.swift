import BundledGuest
import Foundation
import HypervisorInterface
import Testing

extension Integration {
    /// However Vigil ends, in whatever state the guest is then: the state found is the state left, and nothing of
    /// Vigil is in the guest.
    @Suite(.serialized)
    struct RunStateTests {
        enum End: String, CaseIterable {
            case leave, killed, stopped
        }

        enum State: String, CaseIterable {
            case running, paused, suspended, notStarted

            var runState: RunState {
                switch self {
                case .running: .running
                case .paused: .paused
                case .suspended: .suspended
                case .notStarted: .notStarted
                }
            }
        }

        enum Stage: String, CaseIterable {
            case armed, held, beforeReturn
        }

        struct Case: CustomTestStringConvertible, Sendable {
            var end: End
            var state: State
            var stage: Stage

            var testDescription: String { "\(end), \(state), \(stage)" }

            /// A machine that was not started has nothing to arm, and one that sleeps nobody to hold.
            static let all: [Case] = {
                var all: [Case] = []
                for end in End.allCases {
                    for state in State.allCases where state != .notStarted {
                        for stage in Stage.allCases where state != .suspended || stage != .held {
                            all.append(Case(end: end, state: state, stage: stage))
                        }
                    }
                }
                return all
            }()
        }

        private static let refused: UInt64 = 0xC000_02D3

        private func sleep(_ guest: BundledGuestMachine, _ seen: Operator) throws -> Int {
            let call = try guest.console.start("power user 2 4 0")
            while try seen.runState() != .suspended { seen.waitForEvent() }
            return call
        }

        @Test("However Vigil ends, the guest is in the state that it was in, and goes on clean", arguments: Case.all)
        func ends(_ test: Case) throws {
            let guest = try BundledGuestMachine.ready()
            let seen = try Operator(path: guest.operatorSocket)
            var call: Int?
            var status: UInt64 = Self.refused
            if test.state == .suspended {
                status = 0
                if test.stage == .armed { call = try sleep(guest, seen) }
            } else {
                try guest.console.run("refuse on")
            }
            if test.stage == .beforeReturn && test.state != .suspended { try guest.console.run("slow 1000") }

            let hold = test.stage == .held ? ["--hold", "9000"] : []
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"] + hold)
            _ = try vigil.event("attached")
            if test.state == .suspended && test.stage == .beforeReturn {
                call = try sleep(guest, seen)
                _ = try vigil.event("transition-requested")
            } else if test.stage != .armed {
                call = try guest.console.start("power user 5 6 0")
                _ = try vigil.event("transition-requested")
                // The guest runs on: whoever is held has been sent off.
                try guest.console.run("counts")
            }
            if test.state == .paused { try seen.command("stop") }
            #expect(try seen.runState() == test.state.runState)

            // With the guest standing, a caller's registers can be put back only when it runs.
            let waitsForOperator = test.state == .paused && test.stage == .held
            try end(vigil, test.end, waitsForOperator: waitsForOperator)
            #expect(try seen.runState() == test.state.runState)

            if test.state == .paused { try seen.command("cont") }
            if test.state == .suspended { try seen.command("system_wakeup") }
            if waitsForOperator {
                try vigil.expectGuardianActed()
                if test.end == .stopped { vigil.expectAware() }
            }
            if let call { #expect(try guest.console.reply(to: call)["status"] == status) }
            try guest.console.run("slow 1")
            try guest.expectNothingLeft()
        }

        private func end(_ vigil: VigilProcess, _ end: End, waitsForOperator: Bool) throws {
            switch end {
            case .leave:
                vigil.send(SIGINT)
                #expect(vigil.exitStatus() == 0, "\(vigil.outputText)\(vigil.errorText)")
            case .killed, .stopped:
                vigil.send(end == .killed ? SIGKILL : SIGSTOP)
                if waitsForOperator { return }
                try vigil.expectGuardianActed()
                if end == .stopped { vigil.expectAware() }
            }
        }

        @Test(
            "Vigil attaches in every state, and leaves the guest in it",
            arguments: [State.running, .paused, .suspended])
        func attaches(_ state: State) throws {
            let guest = try BundledGuestMachine.ready()
            let seen = try Operator(path: guest.operatorSocket)
            var call: Int?
            if state == .paused { try seen.command("stop") }
            if state == .suspended { call = try sleep(guest, seen) }
            _ = seen.events()
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            #expect(try vigil.event("attached").string("runState") == state.rawValue)
            #expect(try seen.runState() == state.runState)
            if state == .paused { try seen.command("cont") }
            if let call {
                try seen.command("system_wakeup")
                #expect(try guest.console.reply(to: call)["status"] == 0)
            }
            // It is armed.
            try guest.console.run("refuse on")
            try guest.console.run("power user 5 6 0")
            #expect(try vigil.event("outcome").string("result") == "refused")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            try guest.expectNothingLeft()
        }

        @Test("A machine that was not started is waited for, and not started", arguments: End.allCases)
        func notStarted(_ end: End) throws {
            var configuration = GuestConfiguration.tested
            configuration.startsPaused = true
            let guest = try BundledGuestMachine(configuration)
            try guest.waitForSocket()
            let seen = try Operator(path: guest.operatorSocket)
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            _ = try vigil.event("waiting")
            // Control is not taken yet: there is no guardian, and nothing for one to do.
            vigil.send(end == .leave ? SIGINT : end == .killed ? SIGKILL : SIGSTOP)
            if end == .stopped { vigil.send(SIGCONT) } else { _ = vigil.exitStatus() }
            #expect(try seen.runState() == .notStarted && !seen.chardevs().contains { $0.hasPrefix("vigil") })
            try seen.command("cont")
            try guest.waitUntilReady()
            if end == .stopped {
                _ = try vigil.event("attached")
                vigil.send(SIGINT)
                #expect(vigil.exitStatus() == 0)
            }
            try guest.expectNothingLeft()
        }
    }
}
