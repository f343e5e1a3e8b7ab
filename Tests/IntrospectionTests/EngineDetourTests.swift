import HypervisorInterface
import Introspection
import PowerTransitions
import TestSupport
import Testing
import WindowsGuest
import X86

@Suite("Intercepting by an inline detour") struct EngineDetourTests {
    static func run(allowed: Bool = true) -> EngineRun {
        let run = EngineRun()
        // push rbx; sub rsp, 30h; nothing; ret
        let code: [UInt8] = [0x40, 0x53, 0x48, 0x83, 0xec, 0x30, 0x90, 0x90, 0x48, 0x83, 0xc4, 0x30, 0x5b, 0xc3]
        run.guest.kernel.write(code, at: run.guest.entry.rawValue)
        run.options.interception = .detour
        run.options.allowVisiblePatches = allowed
        return run
    }

    /// Where the attached engine stops callers.
    static func stop(_ run: EngineRun) -> UInt64 {
        guard case .inlineDetour(_, let handler)? = run.attachments.last?.mechanism else { return 0 }
        return handler.rawValue
    }

    static func call(_ run: EngineRun, thread: Int = 0) -> Registers {
        var registers = run.guest.call(thread: thread)
        registers.rip = stop(run)
        return registers
    }

    @Test("Armed and left, the guest's memory is as before, and the session says what was armed")
    func armsAndLeaves() throws {
        let run = Self.run()
        let before = Array(run.guest.ram.bytes)
        var armed: UInt8 = 0
        _ = run.run([
            { [run] _ in
                armed = (try? run.guest.locateKernel().memory.load(UInt8.self, at: run.guest.entry)) ?? 0
                return nil
            }
        ])
        #expect(run.events == ["attached", "detached"] && run.isClean && armed == 0xe9)
        #expect(run.attachments.first?.mechanism != .patchless && Self.stop(run) != 0)
        #expect(run.detachment?.handlerLeft == nil && Array(run.guest.ram.bytes) == before)
        #expect(run.detachment?.effects.pauses == 2)
    }

    @Test("Without the user's word nothing is touched")
    func visible() {
        let run = Self.run(allowed: false)
        _ = run.run()
        guard case .detour(.inline(.visible))? = run.error else {
            Issue.record("\(String(describing: run.error))")
            return
        }
        #expect(run.events == [] && run.machine.log == [] && run.isClean)
    }

    @Test("A function that cannot be patched is not armed, and nothing is touched")
    func refused() {
        let run = Self.run()
        // Another hook's jump.
        run.guest.kernel.write([0xe9, 0, 1, 0, 0] as [UInt8], at: run.guest.entry.rawValue)
        _ = run.run()
        guard case .detour(.inline(.prologue))? = run.error else {
            Issue.record("\(String(describing: run.error))")
            return
        }
        #expect(run.events == [] && run.machine.log == [] && run.isClean)
    }

    @Test("A call that comes through the jump is a request, is followed to its return, and counted once")
    func call() {
        let run = Self.run()
        let counts = run.run([
            { [run] machine in machine.stop(0, at: Self.call(run)) },
            run.exit({ $0.call() }, status: 0xc000_02d3),
        ])
        #expect(run.events == ["attached", "requested 1 reboot", "outcome 1 refused", "detached"])
        #expect(counts.entries == 1 && counts.returns == 1 && run.isClean)
    }

    @Test("A held caller is known again at the stop point")
    func held() {
        let run = Self.run()
        run.options.guardOptions = PowerGuardOptions(hold: .microseconds(1))
        _ = run.run([
            { [run] machine in machine.stop(0, at: Self.call(run)) },
            { _ in nil },
            { [run] machine in machine.stop(0, at: Self.call(run)) },
            run.exit({ $0.call() }, status: 0xc000_02d3),
        ])
        #expect(
            run.events == [
                "attached", "requested 1 reboot", "held 1", "released 1 hold-over", "outcome 1 refused", "detached",
            ])
        #expect(run.isClean && run.detachment?.handlerLeft == nil)
    }

    @Test("A reset takes the jump with it: nothing is written any more, and the next boot is armed anew")
    func reset() throws {
        let run = Self.run()
        var wrote = 0
        _ = run.run([
            { [run] machine in
                // What comes up has its own code, and its own zeroes.
                run.guest.kernel.write(
                    [0x40, 0x53, 0x48, 0x83, 0xec, 0x30] as [UInt8], at: run.guest.entry.rawValue)
                run.guest.kernel.write([UInt8](repeating: 0, count: 64), at: Self.stop(run))
                machine.clearLog()
                return .host(.reset(byGuest: true))
            },
            { machine in
                wrote = machine.actions.count { if case .wroteCode = $0 { true } else { false } }
                return nil
            },
        ])
        #expect(run.events == ["attached", "unannounced reset(byGuest: true)", "attached", "detached"])
        // Handler and jump of the second boot.
        #expect(wrote == 2 && run.isClean && run.machine.announcements.contains(.patch(nil)))
    }
}
