import Agents
import BundledGuest
import Foundation
import GuestMemory
import HypervisorInterface
import Introspection
import QEMUHypervisor
import Testing
import X86

extension Integration {
    /// Changes of protected pages, and where the vCPU that made them is when they are told.
    @Suite(.serialized, .needs64Bit)
    struct ReportAtOnceTests {
        /// A change, and the vCPUs that stood at the filter's report point when it was told.
        struct Told {
            var change: TranslationChange
            var standing: [Registers]
        }

        /// An engine on a thread of its own. What is told is looked into on that thread, in the moment of telling.
        final class Session: @unchecked Sendable {
            private let condition = NSCondition()
            private var told: [Told] = []
            private var isDeployed = false
            private var isOver = false
            private var failure: (any Error)?
            private var warnings: [String] = []
            private let wake = Pipe()

            init(_ target: String, atOnce: Bool) throws {
                let image = try AgentImage.bundled("ptfilter")
                let layout = try PageTableFilterLayout(image: image.bytes, data: image.data, size: image.size)
                let thread = Thread { [self] in
                    do {
                        try run(target, atOnce, reportPoint: layout.reportPoint)
                        end(nil)
                    } catch {
                        end(error)
                    }
                }
                thread.stackSize = 8 << 20
                thread.start()
            }

            private func run(_ target: String, _ atOnce: Bool, reportPoint: Int) throws {
                let machine = try QEMUMachine(
                    QEMUTarget(String(target.dropFirst("qemu:".count))),
                    guardianCommand: [VigilProcess.path, "guardian"])
                machine.wakeDescriptor = wake.fileHandleForReading.fileDescriptor
                var options = EngineOptions()
                options.agents = [.pageTableFilter]
                options.allowVisiblePatches = true
                options.protections = [.serviceTables, .kernelCode]
                options.reportsAtOnce = atOnce
                var point: UInt64 = 0
                _ = try Engine(machine, options: options) { [self] event in
                    switch event {
                    case .agent(.deployed(_, let base, _, _, _)):
                        point = base.rawValue + UInt64(reportPoint)
                        note { isDeployed = true }
                    case .agent(.report(_, .translationChanged(let change))):
                        // Only of a machine that stands can registers be read.
                        let stands = (try? machine.isStanding) == true
                        let all = stands ? (0..<machine.vcpuCount).map { try? machine.registers(of: VCPU($0)) } : []
                        let standing = all.compactMap(\.self).filter { $0.rip == point }
                        note { told.append(Told(change: change, standing: standing)) }
                    case .warning(let reason): note { warnings.append(reason) }
                    default: break
                    }
                }.run()
            }

            private func note(_ body: () -> Void) {
                condition.lock()
                body()
                condition.broadcast()
                condition.unlock()
            }

            private func end(_ error: (any Error)?) {
                note {
                    failure = error
                    isOver = true
                }
            }

            /// The filter is in the guest.
            var hasFilter: Bool {
                get throws {
                    condition.lock()
                    defer { condition.unlock() }
                    if let failure { throw failure }
                    return isDeployed
                }
            }

            /// What was told since this was asked last.
            func take() -> [Told] {
                var taken: [Told] = []
                note {
                    taken = told
                    told = []
                }
                return taken
            }

            /// Leaves the guest.
            /// - Returns: the warnings that there were.
            func leave() throws -> [String] {
                wake.fileHandleForWriting.write(Data([1]))
                condition.lock()
                defer { condition.unlock() }
                while !isOver { condition.wait() }
                if let failure { throw failure }
                return warnings
            }
        }

        private struct Move: Equatable {
            var old, new: UInt64
        }

        /// Moves a protected page until that is told in the way that was asked for. A change that comes while another
        /// call has the debug register is told by the ring, and one by an instruction that was not seen at work yet is
        /// not told.
        private func expectTold(
            _ session: Session, _ guest: BundledGuestMachine, _ atOnce: Bool, until deadline: ContinuousClock.Instant
        ) throws {
            var moves: [Move] = []
            func move(of told: Told) -> Move {
                Move(
                    old: told.change.old & PageTableEntry.addressMask, new: told.change.new & PageTableEntry.addressMask
                )
            }
            _ = session.take()
            while ContinuousClock.now < deadline {
                let moved = try guest.console.run("move KiServiceTable")
                moves.append(Move(old: try #require(moved["old"]), new: try #require(moved["new"])))
                guard
                    let told = session.take().last(where: {
                        $0.change.isAtOnce == atOnce && moves.contains(move(of: $0))
                    })
                else { continue }
                // What is told at once was told before the guest could answer.
                if atOnce { #expect(move(of: told) == moves.last) }
                #expect(told.change.level == 1 && told.standing.count == (atOnce ? 1 : 0))
                #expect(told.standing.allSatisfy { !$0.interruptsEnabled && $0.privilegeLevel == 0 })
                return
            }
            Issue.record("none of \(moves.count) changes was told \(atOnce ? "at once" : "by the ring")")
        }

        @Test(
            "Asked for, a protected page's change is told while its vCPU stands at the report point; else a moment later",
            arguments: [1, 2], [true, false])
        func told(_ processors: Int, _ atOnce: Bool) throws {
            let guest = try AgentTests.guest(processors)
            try guest.console.run("load on calls")
            let session = try Session(guest.target, atOnce: atOnce)
            // Who writes page tables is known when he has been seen at work.
            let deadline = ContinuousClock.now + .seconds(60)
            while try !session.hasFilter {
                try #require(ContinuousClock.now < deadline, "the filter is not deployed")
                try guest.console.run("remap 200")
                try guest.console.run("move KiServiceTable")
            }
            try expectTold(session, guest, atOnce, until: deadline)
            // A transition takes it all out, and it is back.
            #expect(try guest.console.run("power kernel 7 4 0")["status"] == 0)
            try expectTold(session, guest, atOnce, until: deadline)
            #expect(try session.leave() == [])
            try guest.console.run("load off")
            while try AgentTests.blocks(guest) != 0 {
                try #require(ContinuousClock.now < deadline, "the filter is left")
            }
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
            try guest.expectNothingLeft()
        }

        @Test("On the command line it needs the filter, and each change says whether it was told at once")
        func commandLine() throws {
            let guest = try AgentTests.guest(1)
            let refused = try VigilProcess.run("attach", guest.target, "--report-at-once")
            #expect(refused.status == 64 && refused.errors.contains("needs --agents pt-filter"), "\(refused.errors)")
            try guest.console.run("load on calls")
            _ = try guest.console.start(FilterSessionTests.endlessRemapping)
            let vigil = try VigilProcess(
                ["attach", guest.target, "--report-at-once", "--protect", "service-tables"]
                    + FilterSessionTests.arguments)
            let deadline = ContinuousClock.now + .seconds(60)
            while !vigil.outputText.contains("\"translation-changed\"") {
                try #require(ContinuousClock.now < deadline, "not told: \(vigil.outputText)")
                try guest.console.run("move KiServiceTable")
            }
            let change = try vigil.event("translation-changed")
            #expect(change.bool("atOnce") == true)
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0, "\(vigil.errorText)")
            try guest.console.run("load off")
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
        }
    }
}
