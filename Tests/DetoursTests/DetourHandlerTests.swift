import Testing

@testable import Detours

@Suite("The detour's handler, executed", .serialized) struct DetourHandlerTests {
    /// Carry, parity, adjust, zero, sign, overflow, direction, identification; what is always set.
    static let allFlags: UInt64 = 0x20_0cd5 | 0x202
    static let noFlags: UInt64 = 0x202

    static func caller(_ run: HandlerRun, flags: UInt64 = noFlags, mxcsr: UInt64 = 0x1f80) -> ProcessorState {
        var state = ProcessorState.distinct(flags: flags, mxcsr: mxcsr)
        state.rsp = run.callersRSP
        return state
    }

    @Test("Every register, flag and vector arrives at the entry as it was, from each slot", arguments: 0..<8)
    func preserves(slot: Int) {
        let run = HandlerRun(offset: slot * 0x50)
        let above = (0..<256).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        for (flags, mxcsr) in [(Self.allFlags, 0x7fbf), (Self.noFlags, 0x1f80)] as [(UInt64, UInt64)] {
            run.callersStack = above
            run[wait: slot] = 1
            let state = Self.caller(run, flags: flags, mxcsr: mxcsr)
            let result = run.run(state, slot: slot) { run, count in
                if count == 3 { run[wait: slot] = 0 }
            }
            #expect(result.differences(from: state) == [])
            #expect(run.calls.count == 3)
            #expect(run.callersStack == above)
        }
    }

    @Test("A caller whose byte is 0 goes through without a delay, with everything as it was")
    func notHeld() {
        for hasLease in [true, false] {
            let run = HandlerRun(hasLease: hasLease)
            let state = Self.caller(run, flags: Self.allFlags, mxcsr: 0x9fc0)
            let result = run.run(state, slot: 2)
            #expect(result.differences(from: state) == [])
            #expect(run.calls.isEmpty)
        }
    }

    @Test("The delay is called as its convention demands: aligned stack, direction clear, kernel mode, the interval")
    func callsDelay() {
        let run = HandlerRun()
        for misalignment in [0, 8] as [UInt64] {
            run[wait: 0] = 1
            var state = Self.caller(run, flags: Self.allFlags)
            state.rsp -= misalignment
            let result = run.run(state, slot: 0) { run, count in if count == 2 { run[wait: 0] = 0 } }
            #expect(result.differences(from: state) == [])
            for call in run.calls {
                // A call has just pushed its return address.
                #expect(call.rsp % 16 == 8)
                #expect(call.flags & 0x400 == 0)
                #expect(call.rcx == 0 && call.rdx == 0)
                #expect(call.r8 == run.address(of: .delayInterval))
            }
            // Each round begins with the same stack.
            #expect(run.calls.count == 2 && run.calls[0].rsp == run.calls[1].rsp)
            #expect(run.calls[0].rsp < state.rsp)
        }
    }

    @Test("The handler writes nothing of itself")
    func readOnly() {
        let run = HandlerRun()
        run[wait: 1] = 1
        var during: [UInt8] = []
        let before = run.bytes
        _ = run.run(Self.caller(run), slot: 1) { run, _ in
            during = run.bytes
            run[wait: 1] = 0
        }
        #expect(during == before)
    }

    @Test("It waits as long as its byte stands and the lease is renewed, whatever time passes")
    func renewed() {
        let run = HandlerRun()
        run[wait: 5] = 1
        let result = run.run(Self.caller(run), slot: 5) { run, count in
            run.time += HandlerRun.leaseLimit - 1
            run.lease = UInt8(truncatingIfNeeded: count)
            if count == 300 { run[wait: 5] = 0 }
        }
        #expect(run.calls.count == 300)
        #expect(result.differences(from: Self.caller(run)) == [])
    }

    @Test("It leaves when the lease has stood for the limit of the guest's time, and not before")
    func leaseExpires() {
        let run = HandlerRun()
        run[wait: 0] = 1
        let result = run.run(Self.caller(run), slot: 0) { run, count in
            switch count {
            case 1: run.time += HandlerRun.leaseLimit - 1
            case 2...50: break  // one unit is missing, however often it is looked at
            case 51: run.time += 1
            default: run[wait: 0] = 0  // too late: it should have gone
            }
        }
        #expect(run.calls.count == 51)
        #expect(run[wait: 0] == 1)
        #expect(result.differences(from: Self.caller(run)) == [])
    }

    @Test("The limit counts from the last change of the lease")
    func leaseCountsFromChange() {
        let run = HandlerRun()
        run[wait: 0] = 1
        _ = run.run(Self.caller(run), slot: 0) { run, count in
            switch count {
            case 1:
                run.time += HandlerRun.leaseLimit - 1
                run.lease = 9
            case 2: run.time += HandlerRun.leaseLimit - 1
            case 3: run.time += 1
            default: run[wait: 0] = 0
            }
        }
        #expect(run.calls.count == 3)
        #expect(run[wait: 0] == 1)
    }

    @Test("Time that the guest spent asleep does not count")
    func sleepDoesNotCount() {
        let run = HandlerRun()
        run[wait: 3] = 1
        _ = run.run(Self.caller(run), slot: 3) { run, count in
            switch count {
            case 1:
                run.time += 1_000_000_000
                run.bias += 1_000_000_000
            case 2: run.time += HandlerRun.leaseLimit - 1
            case 3: run.time += 1
            default: run[wait: 3] = 0
            }
        }
        #expect(run.calls.count == 3)
        #expect(run[wait: 3] == 1)
    }

    @Test("Without shared user data there is no lease: only the byte ends the wait")
    func withoutLease() {
        let run = HandlerRun(hasLease: false)
        run[wait: 0] = 1
        _ = run.run(Self.caller(run), slot: 0) { run, count in
            run.time += HandlerRun.leaseLimit
            if count == 40 { run[wait: 0] = 0 }
        }
        #expect(run.calls.count == 40)
    }

    @Test("Other slots' bytes neither hold nor release a caller", arguments: 0..<8)
    func otherSlots(slot: Int) {
        let run = HandlerRun()
        for other in 0..<8 { run[wait: other] = 1 }
        _ = run.run(Self.caller(run), slot: slot) { run, count in
            switch count {
            case 1: for other in 0..<8 where other != slot { run[wait: other] = 0 }
            case 2: for other in 0..<8 where other != slot { run[wait: other] = 0xff }
            case 3: run[wait: slot] = 0x80
            case 4: run[wait: slot] = 0
            default: break
            }
        }
        #expect(run.calls.count == 4)
    }

    @Test("The public data lie apart from the code and from each other, within the handler")
    func layout() {
        let handler = DetourHandler()
        let ranges = DetourHandler.PublicData.allCases.map { handler.range(of: $0) }.sorted {
            $0.lowerBound < $1.lowerBound
        }
        for (range, next) in zip(ranges, ranges.dropFirst()) { #expect(range.upperBound <= next.lowerBound) }
        #expect(ranges.last!.upperBound <= DetourHandler.length)
        #expect(ranges.first!.lowerBound > handler.stubOffset(slot: DetourHandler.slots - 1))
        #expect(DetourHandler.slots == 8 && handler.range(of: .spinWait).count == 8)
        #expect(handler.bytes.count == DetourHandler.length)
        for range in ranges { #expect(handler.bytes[range].allSatisfy { $0 == 0 }) }
    }
}
