import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

@Suite("Calls that come through an inline detour's jump") struct JumpedCallTests {
    /// A caller that stands at the handler's stop point: its registers are those at the entry, but for RIP.
    static func call(_ test: HookedGuest) -> Registers {
        var registers = test.guest.call()
        registers.rip = test.detour.stopAddress.rawValue
        test.machine.registers[0] = registers
        return registers
    }

    @Test("The breakpoint is set first, then witnesses hear of the patch, then handler and jump are written")
    func armed() throws {
        let test = try HookedGuest(jump: true)
        try test.detour.arm()
        let plan = try #require(test.detour.inline?.armed)
        #expect(test.detour.stopAddress == plan.handlerAddress && test.detour.stopAddress != test.guest.entry)
        let patches = test.machine.announcements.compactMap { if case .patch(let patch) = $0 { patch } else { nil } }
        let patch = try #require(patches.first)
        #expect(patch.handler == plan.handlerAddress && patch.handlerLength == plan.handler.count)
        #expect(patch.places.flatMap(\.original) == plan.original && patch.places.flatMap(\.patch) == plan.patch)
        #expect(patch.counterpart(of: plan.handlerAddress.rawValue) == test.guest.entry)
        for offset in 1..<plan.handler.count {
            let rip = plan.handlerAddress.rawValue + UInt64(offset)
            #expect(patch.counterpart(of: rip)?.rawValue == plan.counterpart(inHandler: rip))
        }
        let log = test.machine.log
        let told = try #require(log.firstIndex(of: .announced(.patch(patch))))
        let set = try #require(log.firstIndex(of: .inserted(.execution(plan.handlerAddress))))
        let written = try #require(log.firstIndex { if case .wroteCode = $0 { true } else { false } })
        #expect(set < told && told < written)
        #expect(test.machine.sites == [.execution(plan.handlerAddress)] && test.machine.violations == [])

        #expect(try test.detour.removePatch() == nil)
        #expect(test.machine.announcements.last == .patch(nil))
        try test.detour.disarm()
        #expect(test.machine.sites == [])
    }

    @Test("Where the jump cannot be written, the breakpoint is gone too, and witnesses know that nothing is left")
    func failed() throws {
        let test = try HookedGuest(jump: true)
        test.machine.failures[.writeCode] = [.commandFailed(command: "M", reason: "E14")]
        #expect {
            try test.detour.arm()
        } throws: {
            if case .inline(.hypervisor)? = $0 as? DetourError { true } else { false }
        }
        #expect(test.machine.sites == [] && test.machine.announcements.contains(.patch(nil)))
        #expect(test.machine.violations == [])
    }

    @Test("A caller is stepped through the whole handler, and counts as entered")
    func steppedOver() throws {
        let test = try HookedGuest(jump: true)
        try test.detour.arm()
        let plan = try #require(test.detour.inline?.armed)
        _ = Self.call(test)
        #expect(try test.detour.stepOver(VCPU(0)))
        #expect(!plan.isInHandler(test.machine.registers[0].rip))
        #expect(test.machine.sites == [.execution(plan.handlerAddress)] && test.machine.violations == [])
    }

    @Test("One that waits in the handler comes back by the entry, and is recognised at the stop point")
    func heldInHandler() throws {
        let test = try HookedGuest(jump: true)
        try test.detour.arm()
        let call = Self.call(test)
        let holder = try test.detour.hold(VCPU(0), call)
        #expect(test.detour.isHandlerPresent && test.value(of: .entry) == test.guest.entry.rawValue)
        let plan = try #require(test.detour.inline?.armed)
        #expect(test.detour.inline?.slack.address.rawValue ?? 0 >= test.slack.rawValue + UInt64(DetourHandler.length))
        let kernel = try test.guest.locateKernel()
        #expect(try kernel.memory.bytes(at: plan.handlerAddress, count: UInt64(plan.handler.count)) == plan.handler)
        var atEntry = call
        atEntry.rip = test.guest.entry.rawValue
        #expect(test.machine.announcements.contains(.hold(HeldCaller(slot: 0, registers: atEntry))))
        #expect(test.detour.returningHolder(atEntry) == nil && test.detour.returningHolder(call) == holder)
        test.machine.registers[0] = call
        try test.detour.takeBack(holder, VCPU(0), call)
        #expect(test.slackIsZero && !test.detour.isHandlerPresent)
        #expect(try kernel.memory.bytes(at: plan.handlerAddress, count: UInt64(plan.handler.count)) == plan.handler)
    }

    @Test("One that waits in a delay returns to the entry; Vigil gives it its registers at the stop point")
    func heldInDelay() throws {
        let test = try DelayCallTests.guest(jump: true)
        try test.detour.arm()
        let call = Self.call(test)
        let holder = try test.detour.hold(VCPU(0), call)
        #expect(DelayCallTests.word(test, call.rsp - 0x30) == test.guest.entry.rawValue)
        var atEntry = call
        atEntry.rip = test.guest.entry.rawValue
        let delay = HeldCaller.Delay(entry: test.guest.entry, arrivalRSP: call.rsp - 0x28, vcpu: VCPU(0))
        // Whoever takes over after Vigil has put the function back before.
        #expect(
            test.machine.announcements.contains(
                .hold(HeldCaller(slot: holder.slot, registers: atEntry, delay: delay))))
        var back = call
        back.rsp = delay.arrivalRSP
        back.rcx = 0
        test.machine.registers[0] = back
        #expect(test.detour.returningHolder(back) == holder)
        try test.detour.takeBack(holder, VCPU(0), back)
        #expect(test.machine.registers[0] == call && test.machine.violations == [])
    }

    @Test("A word in RAM that leads into the handler keeps it there; the function is as it was, and later so is all")
    func interruptedThread() throws {
        let test = try InlineDetourGuest()
        let before = test.snapshot
        try test.detour.arm()
        let plan = try #require(test.detour.armed)
        let frame = test.guest.threads[3].stackSlot - 0x28
        let old = test.guest.ram.load(UInt64.self, at: try test.physical(GuestVirtualAddress(frame)).rawValue)
        test.guest.kernel.write(plan.handlerAddress.rawValue + 1, at: frame)
        guard case .handlerKept(let reason) = try test.detour.disarm() else {
            Issue.record("the handler was zeroed")
            return
        }
        #expect(reason.contains("interrupted thread") && test.detour.armed == nil)
        #expect(test.bytes(test.entry, 6) == plan.original)
        // It may be armed again meanwhile, also by another session.
        try test.detour.arm()
        test.guest.kernel.write(old, at: frame)
        #expect(try test.detour.disarm() == .clean && test.snapshot == before)
    }

    @Test("Where RAM cannot be searched the handler stays")
    func noSearch() throws {
        let test = try InlineDetourGuest()
        try test.detour.arm()
        test.machine.writesDataWhileRunning = false
        #expect(try test.detour.disarm() != .clean)
        test.machine.writesDataWhileRunning = true
        #expect(try test.detour.disarm() == .clean)
    }

    @Test("A function that was paged out meanwhile is put back where it lay, if it still lies there")
    func pagedOut() throws {
        for isGone in [false, true] {
            let test = try InlineDetourGuest()
            let place = try test.physical(test.entry)
            try test.detour.arm()
            let original = try #require(test.detour.armed).original
            if isGone { test.ram.store([UInt8](repeating: 7, count: 16), at: place.rawValue) }
            test.guest.kernel.setEntry(of: test.entry.rawValue, to: 0)
            #expect(try test.detour.disarm() == .clean)
            let now = original.indices.map { test.ram.load(UInt8.self, at: place.rawValue + UInt64($0)) }
            #expect(now == (isGone ? [UInt8](repeating: 7, count: original.count) : original))
        }
    }
}
