import HypervisorInterface
import Introspection
import PowerTransitions
import TestSupport
import Testing
import WindowsGuest
import X86

@Suite("An inline detour during transitions") struct EngineWithdrawnDetourTests {
    /// What of the guest's RAM differs from how it was before Vigil came, while stacks may.
    private final class Watch {
        private let run: EngineRun
        private let entry: UInt64
        private let clean: [UInt8]

        init(_ run: EngineRun) {
            self.run = run
            entry = run.guest.entry.rawValue
            clean = Self.code(run)
        }

        private static func code(_ run: EngineRun) -> [UInt8] {
            let memory = try? run.guest.locateKernel().memory
            return (try? memory?.bytes(at: run.guest.entry.page, count: 0x1000)) ?? []
        }

        var isClean: Bool { Self.code(run) == clean && !clean.isEmpty }
    }

    private static func atEntry(_ run: EngineRun, thread: Int = 0) -> Registers { run.guest.call(2, 4, thread: thread) }

    private static func atStop(_ run: EngineRun, thread: Int = 0) -> Registers {
        var registers = atEntry(run, thread: thread)
        registers.rip = EngineDetourTests.stop(run)
        return registers
    }

    @Test(
        "Every transition is entered without the jump, and is not paused until its outcome; then the jump is back",
        arguments: [(2, 4), (3, 5), (5, 6), (6, 6), (7, 1)] as [(UInt32, UInt32)])
    func transitions(_ action: UInt32, _ state: UInt32) {
        let run = EngineDetourTests.run()
        let watch = Watch(run)
        var call = Registers()
        var seen: [Bool] = []
        _ = run.run([
            { [run] machine in
                seen.append(watch.isClean)
                call = run.guest.call(action, state)
                call.rip = EngineDetourTests.stop(run)
                return machine.stop(0, at: call)
            },
            { machine in
                seen.append(watch.isClean)
                #expect(machine.sites.contains(run.guest.entrySite))
                machine.clearLog()
                return nil
            },
            run.exit({ $0.call(action, state) }, status: 0xc000_02d3),
            { machine in
                seen.append(watch.isClean)
                #expect(!machine.actions.contains(.paused) && !machine.sites.contains(run.guest.entrySite))
                return nil
            },
        ])
        #expect(seen == [false, true, false])
        #expect(run.events.last == "detached" && run.events.contains { $0.hasPrefix("outcome 1 refused") })
        #expect(watch.isClean && run.isClean && run.warnings == [])
    }

    @Test("A second request comes by the breakpoint on the entry; the jump is back when both have ended, once")
    func twoRequests() {
        let run = EngineDetourTests.run()
        let watch = Watch(run)
        var seen: [Bool] = []
        let counts = run.run([
            { machine in machine.stop(0, at: Self.atStop(run)) },
            { machine in machine.stop(0, at: Self.atEntry(run, thread: 1)) },
            run.exit({ $0.call(2, 4) }, status: 0xc000_02d3),
            { machine in
                seen.append(watch.isClean)
                machine.clearLog()
                return nil
            },
            run.exit({ $0.call(2, 4, thread: 1) }, status: 0xc000_02d3),
            { machine in
                seen.append(watch.isClean)
                // Handler and jump.
                #expect(machine.actions.count { if case .wroteCode = $0 { true } else { false } } == 2)
                return nil
            },
        ])
        #expect(seen == [true, false] && counts.entries == 2 && counts.returns == 2 && counts.unwatched == 0)
        #expect(run.isClean && watch.isClean && run.warnings == [])
    }

    @Test("A user's call that leads to nothing, and arguments that no kernel accepts, take nothing out")
    func notARequest() {
        let run = EngineDetourTests.run()
        let watch = Watch(run)
        var seen: [Bool] = []
        _ = run.run([
            { machine in
                var call = run.guest.call(9, 9)
                call.rip = EngineDetourTests.stop(run)
                return machine.stop(0, at: call)
            },
            { _ in
                seen.append(watch.isClean)
                return nil
            },
        ])
        #expect(seen == [false] && run.events.contains("ignored") && watch.isClean && run.isClean)
    }

    @Test("Code that changed while a transition was under way is a warning, and calls are seen by the breakpoint")
    func changedMeanwhile() {
        let run = EngineDetourTests.run()
        let counts = run.run([
            { machine in machine.stop(0, at: Self.atStop(run)) },
            { machine in
                run.guest.kernel.write(UInt8(0x41), at: run.guest.entry.rawValue)
                return nil
            },
            run.exit({ $0.call(2, 4) }, status: 0xc000_02d3),
            { machine in
                machine.clearLog()
                return machine.stop(0, at: Self.atEntry(run))
            },
            run.exit({ $0.call(2, 4) }, status: 0xc000_02d3),
            { machine in
                #expect(!machine.actions.contains { if case .wroteCode = $0 { true } else { false } })
                return nil
            },
        ])
        #expect(counts.entries == 2 && counts.returns == 2 && run.isClean)
        #expect(run.warnings.count == 1 && run.warnings[0].contains("was not put back"))
    }

    @Test("Leaving while the jump is out leaves nothing, and writes nothing")
    func leaving() {
        let run = EngineDetourTests.run()
        let watch = Watch(run)
        _ = run.run([
            { machine in machine.stop(0, at: Self.atStop(run)) },
            { machine in
                machine.clearLog()
                return .interrupted
            },
        ])
        #expect(!run.machine.actions.contains { if case .wroteCode = $0 { true } else { false } })
        #expect(run.isClean && watch.isClean && run.detachment?.handlerLeft == nil)
    }

    @Test("As long as one request's outcome is not known, the jump stays out")
    func unknownOutcome() {
        let run = EngineDetourTests.run()
        let watch = Watch(run)
        run.machine.capacity = 2
        var seen: [Bool] = []
        _ = run.run([
            { machine in machine.stop(0, at: Self.atStop(run)) },
            { machine in machine.stop(0, at: Self.atEntry(run, thread: 1)) },
            run.exit({ $0.call(2, 4) }, status: 0xc000_02d3),
            { machine in
                seen.append(watch.isClean)
                return machine.stop(0, at: Self.atEntry(run))
            },
            run.exit({ $0.call(2, 4) }, status: 0xc000_02d3),
            { _ in
                seen.append(watch.isClean)
                return nil
            },
        ])
        // The other one's return is not watched: only host events, or time, can end it.
        #expect(seen == [true, true] && run.isClean && watch.isClean)
        #expect(run.detachment?.openTransitions == 1)
    }
}
