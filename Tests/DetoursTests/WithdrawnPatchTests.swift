import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

/// Knows what the guardian knows of the jump, and looks at the guest whenever something is announced.
private final class PatchWitness: EffectWitness {
    private let bytes: () -> [UInt8]
    private let clean: [UInt8]
    private var patch: CodePatch?
    private(set) var unknown = 0
    private(set) var looks = 0

    init(_ bytes: @escaping () -> [UInt8]) {
        self.bytes = bytes
        clean = bytes()
    }

    func willPerform(_ effect: Effect) throws(HypervisorError) {
        if case .patch(let new) = effect { patch = new }
        looks += 1
        if bytes() != clean, patch == nil { unknown += 1 }
    }
}

@Suite("A jump that is taken out for a while") struct WithdrawnPatchTests {
    private static func armed(vcpus: Int = 1) throws -> (HookedGuest, InlineDetourPlan) {
        let test = try HookedGuest(vcpus: vcpus, jump: true)
        try test.detour.arm()
        return (test, try #require(test.detour.inline?.armed))
    }

    private static func bytes(_ test: HookedGuest, _ address: GuestVirtualAddress, _ count: Int) throws -> [UInt8] {
        try test.guest.locateKernel().memory.bytes(at: address, count: UInt64(count))
    }

    private static func memory(_ test: HookedGuest) -> [UInt8] {
        Array(UnsafeRawBufferPointer(test.guest.ram.bytes))
    }

    @Test("Nothing of it is in the guest, callers stand at the entry, and the breakpoint too, on the same register")
    func takenOut() throws {
        let test = try HookedGuest(vcpus: 3, jump: true)
        let before = Self.memory(test)
        try test.detour.arm()
        let plan = try #require(test.detour.inline?.armed)
        #expect(try test.debugRegisters.acquire(.injection, .execution(GuestVirtualAddress(0x1000))))
        for (vcpu, offset) in [0, 1, 100].enumerated() {
            test.machine.registers[vcpu].rip = plan.handlerAddress.rawValue + UInt64(offset)
        }
        #expect(try test.detour.takeOutPatch() == nil)
        #expect(Self.memory(test) == before)
        #expect(test.machine.registers[0].rip == test.guest.entry.rawValue)
        #expect(test.machine.registers[1].rip == plan.patchAddress.rawValue)
        #expect(test.machine.registers[2].rip == plan.handlerAddress.rawValue + 100)
        #expect(test.detour.stopAddress == test.guest.entry)
        #expect(test.debugRegisters.registers[0]?.site == .execution(test.guest.entry))
        #expect(test.debugRegisters.inUse == 2 && test.machine.mostSites == 2)
        #expect(test.machine.announcements.last == .insert(.execution(test.guest.entry)))
        #expect(try test.detour.takeOutPatch() == nil && test.machine.violations == [])
    }

    @Test("It is put back once, with the breakpoint where it leads; what is put back is what was there")
    func putBack() throws {
        let (test, plan) = try Self.armed()
        let armed = Self.memory(test)
        #expect(try test.detour.putPatchBack() == nil && Self.memory(test) == armed)
        _ = try test.detour.takeOutPatch()
        #expect(try test.detour.putPatchBack() == nil)
        #expect(Self.memory(test) == armed && test.detour.stopAddress == plan.handlerAddress)
        #expect(test.machine.sites == [.execution(plan.handlerAddress)])
        test.machine.clearLog()
        #expect(try test.detour.putPatchBack() == nil && test.machine.log == [])
        #expect(try test.detour.removePatch() == nil && test.machine.violations == [])
    }

    @Test("What somebody else changed meanwhile is said, and left alone; the breakpoint stays on the entry")
    func changedMeanwhile() throws {
        for offset in [0, 5] as [UInt64] {
            let (test, plan) = try Self.armed()
            _ = try test.detour.takeOutPatch()
            test.guest.kernel.write(UInt8(0xcc), at: plan.patchAddress.rawValue + offset)
            let before = Self.memory(test)
            #expect(try test.detour.putPatchBack()?.contains("somebody else changed it") == true)
            #expect(Self.memory(test) == before && test.detour.stopAddress == test.guest.entry)
            #expect(test.machine.sites == [.execution(test.guest.entry)])
            // Once: it does not come back when the bytes do.
            test.guest.kernel.write(plan.original, at: plan.patchAddress.rawValue)
            #expect(try test.detour.putPatchBack() == nil)
            #expect(try Self.bytes(test, plan.patchAddress, plan.original.count) == plan.original)
            #expect(try test.detour.removePatch() == nil)
            let told = test.machine.announcements.last { if case .patch = $0 { true } else { false } }
            #expect(told == .patch(nil))
        }
    }

    @Test("Slack that somebody uses by then is left alone, and nothing is put back")
    func slackInUse() throws {
        let (test, plan) = try Self.armed()
        _ = try test.detour.takeOutPatch()
        test.guest.kernel.write(UInt8(7), at: plan.handlerAddress.rawValue + 3)
        let before = Self.memory(test)
        #expect(try test.detour.putPatchBack()?.contains("is not zero") == true)
        #expect(Self.memory(test) == before && test.machine.sites == [.execution(test.guest.entry)])
    }

    @Test("A jump that somebody changed is not taken out: that is said, and interception goes on")
    func foreignJump() throws {
        let (test, plan) = try Self.armed()
        test.guest.kernel.write(UInt8(0xcc), at: plan.patchAddress.rawValue)
        let before = Self.memory(test)
        #expect(try test.detour.takeOutPatch()?.contains("the jump stays") == true)
        #expect(Self.memory(test) == before && test.machine.sites == [.execution(plan.handlerAddress)])
        #expect(try test.detour.putPatchBack() == nil && Self.memory(test) == before)
    }

    @Test("A page that was read from its file again has nothing to take out, and gets the jump afterwards")
    func pageReadAgain() throws {
        let (test, plan) = try Self.armed()
        test.guest.kernel.write(plan.original, at: plan.patchAddress.rawValue)
        #expect(try test.detour.takeOutPatch() == nil)
        #expect(try Self.bytes(test, plan.handlerAddress, plan.handler.count).allSatisfy { $0 == 0 })
        #expect(try test.detour.putPatchBack() == nil)
        #expect(try Self.bytes(test, plan.patchAddress, plan.patch.count) == plan.patch)
    }

    @Test("An interrupt on a caller's way along the jump leaves a word below its stack pointer, which does not count")
    func deadWord() throws {
        for (below, left) in [(0x08, false), (0x28, false), (0x30, false), (0xf00, false), (-8, true)] as [(Int, Bool)]
        {
            let (test, plan) = try Self.armed()
            var call = test.guest.call()
            call.rip = plan.handlerAddress.rawValue
            test.machine.registers[0] = call
            test.guest.kernel.write(plan.handlerAddress.rawValue, at: call.rsp &- UInt64(bitPattern: Int64(below)))
            #expect(try (test.detour.takeOutPatch() != nil) == left, "\(below)")
            let handler = try Self.bytes(test, plan.handlerAddress, plan.handler.count)
            #expect(handler == (left ? plan.handler : [UInt8](repeating: 0, count: handler.count)), "\(below)")
            #expect(try Self.bytes(test, plan.patchAddress, plan.original.count) == plan.original)
            // What had to stay is used again.
            #expect(try test.detour.putPatchBack() == nil)
            #expect(try Self.bytes(test, plan.patchAddress, plan.patch.count) == plan.patch)
        }
    }

    @Test("The interrupt's word may lie on the page below, whose other words count")
    func deadWordBelowThePage() throws {
        for (below, left) in [(0x28, false), (0x48, true), (0x900, true)] as [(UInt64, Bool)] {
            let (test, plan) = try Self.armed()
            var call = test.guest.call(thread: 1)
            call.rip = plan.handlerAddress.rawValue
            call.rsp = (call.rsp & ~0xfff) + 8
            test.machine.registers[0] = call
            test.guest.kernel.write(plan.handlerAddress.rawValue, at: call.rsp - below)
            #expect(try (test.detour.takeOutPatch() != nil) == left, "\(below)")
        }
    }

    @Test("The word of a vCPU that is not at the function's entry counts wherever it lies")
    func wordOfOthers() throws {
        let (test, plan) = try Self.armed()
        var call = test.guest.call()
        call.rip = test.guest.entry.rawValue + 0x100
        test.machine.registers[0] = call
        test.guest.kernel.write(plan.handlerAddress.rawValue, at: call.rsp - 0x28)
        #expect(try test.detour.takeOutPatch()?.contains("interrupted thread") == true)
    }

    @Test("While it is out, a caller is stepped past every byte that will be replaced again")
    func steppedPast() throws {
        let (test, plan) = try Self.armed()
        _ = try test.detour.takeOutPatch()
        let call = test.guest.call()
        test.machine.registers[0] = call
        test.machine.onStep = { $0.rip &+= 2 }
        #expect(try test.detour.stepOver(VCPU(0)))
        #expect(test.machine.registers[0].rip == plan.patchAddress.rawValue + UInt64(plan.patch.count))
        // One whose first instruction faults is stopped again.
        test.machine.registers[0] = call
        test.machine.onStep = { $0.rip = FakeGuest.returnAddress }
        #expect(try !test.detour.stepOver(VCPU(0)))
        #expect(test.machine.violations == [])
    }

    @Test("Behind a landing pad, callers stand at the entry and are stepped past all of it")
    func landingPad() throws {
        let test = try InlineDetourGuest(code: [0xf3, 0x0f, 0x1e, 0xfa] + InlineDetourGuest.plain)
        try test.detour.arm()
        test.setRIP(test.slack.address)
        #expect(try test.detour.takeOut() == .clean)
        #expect(test.rip() == test.entry)
    }

    @Test("Who was sent off before has its registers at the entry while the jump is out, and at the stop point after")
    func holders() throws {
        for isPutBack in [false, true] {
            let test = try DelayCallTests.guest(jump: true)
            try test.detour.arm()
            let call = JumpedCallTests.call(test)
            let holder = try test.detour.hold(VCPU(0), call)
            _ = try test.detour.takeOutPatch()
            if isPutBack { _ = try test.detour.putPatchBack() }
            var back = call
            back.rip = test.detour.stopAddress.rawValue
            back.rsp = holder.arrivalRSP
            test.machine.registers[0] = back
            #expect(test.detour.returningHolder(back) == holder)
            try test.detour.takeBack(holder, VCPU(0), back)
            var expected = call
            expected.rip = isPutBack ? call.rip : test.guest.entry.rawValue
            #expect(test.machine.registers[0] == expected && test.machine.violations == [])
        }
    }

    @Test("Whatever happens in between, the guardian knows of the jump as long as a byte of it is there")
    func guardianKnows() throws {
        let test = try HookedGuest(vcpus: 2, jump: true)
        let witness = PatchWitness { Self.memory(test) }
        test.effects.witnesses.append(witness)
        try test.detour.arm()
        let plan = try #require(test.detour.inline?.armed)
        for vcpu in 0..<2 { test.machine.registers[vcpu].rip = plan.handlerAddress.rawValue + UInt64(vcpu) }
        _ = try test.detour.takeOutPatch()
        _ = try test.detour.putPatchBack()
        #expect(try test.detour.removePatch() == nil)
        try test.detour.disarm()
        #expect(witness.unknown == 0 && witness.looks > 10)
    }

    @Test("After a reset there is nothing to put back")
    func reset() throws {
        let (test, _) = try Self.armed()
        _ = try test.detour.takeOutPatch()
        try test.detour.forgetEverything()
        test.machine.clearLog()
        #expect(try test.detour.putPatchBack() == nil && test.machine.actions == [])
    }
}
