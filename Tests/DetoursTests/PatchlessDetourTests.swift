import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

@Suite("The patchless detour") struct PatchlessDetourTests {
    static func error(_ body: () throws(DetourError) -> Void) -> DetourError? {
        do throws(DetourError) {
            try body()
            return nil
        } catch {
            return error
        }
    }

    @Test("Armed it is one breakpoint, and nothing of the guest is changed")
    func arms() throws {
        let test = try HookedGuest()
        try test.detour.arm()
        #expect(test.machine.actions == [.inserted(test.guest.entrySite)] && test.slackIsZero)
        try test.detour.disarm()
        #expect(test.machine.sites.isEmpty && test.debugRegisters.inUse == 0)
    }

    @Test("Without a free debug register it is not armed, and says so")
    func noRegister() throws {
        let test = try HookedGuest()
        for slot in 0..<4 as Range<UInt64> {
            _ = try test.debugRegisters.acquire(.returnWatch(stackSlot: slot), DebugRegisterTableTests.watch(slot))
        }
        guard case .noDebugRegister = Self.error({ () throws(DetourError) in try test.detour.arm() }) else {
            Issue.record("it was armed")
            return
        }
        #expect(!test.machine.sites.contains(test.guest.entrySite))
    }

    @Test("A caller that is stepped over leaves the breakpoint set and no other register changed")
    func stepsOver() throws {
        let test = try HookedGuest()
        try test.detour.arm()
        let call = test.guest.call()
        test.machine.registers[0] = call
        try test.detour.stepOver(VCPU(0))
        #expect(test.machine.sites == [test.guest.entrySite])
        var expected = call
        expected.rip += 4
        #expect(test.machine.registers[0] == expected && test.machine.violations == [])
        #expect(!test.machine.actions.contains { if case .wroteRegisters = $0 { true } else { false } })
    }

    @Test("Holding writes the handler with its data into the slack, then moves RIP and nothing else")
    func holds() throws {
        let test = try HookedGuest()
        let (holder, call) = try test.hold()
        #expect(holder.slot == 0 && holder.registers == call && !holder.isReleased)
        #expect(test.detour.isHandlerPresent && test.detour.holders == [holder])
        var expected = call
        expected.rip = test.slack.rawValue
        #expect(test.machine.registers[0] == expected && test.detour.isInHandler(expected.rip))
        #expect(test.value(of: .entry) == test.guest.entry.rawValue)
        #expect(test.value(of: .sharedData) == 0xffff_f780_0000_0000)
        #expect(test.value(of: .delayFunction) == HookedGuest.delayFunction.rawValue)
        #expect(test.value(of: .leaseLimit) == 20_000_000)
        #expect(Int64(bitPattern: test.value(of: .delayInterval)) == -50_000)
        #expect(test.waitByte(0) == 1 && (1..<8).allSatisfy { test.waitByte($0) == 0 })
        // What is not data is the handler's code.
        let data = Set(DetourHandler.PublicData.allCases.flatMap { Array(test.handler.range(of: $0)) })
        for (index, byte) in test.slackBytes.enumerated() where !data.contains(index) {
            #expect(byte == test.handler.bytes[index])
        }
        #expect(test.machine.violations == [])
    }

    @Test("Nothing of the guest but the slack and RIP is touched by a hold")
    func touchesNothingElse() throws {
        let test = try HookedGuest()
        let range = test.slackPhysical..<test.slackPhysical + UInt64(DetourHandler.length)
        _ = try test.hold()
        for action in test.machine.actions {
            switch action {
            case .wroteCode(let place, let bytes), .wroteData(let place, let bytes):
                #expect(range.contains(place.rawValue) && place.rawValue + UInt64(bytes.count) <= range.upperBound)
            case .wroteRegisters(let vcpu, _): #expect(vcpu == VCPU(0))
            default: Issue.record("\(action)")
            }
        }
    }

    @Test("Witnesses know of the handler before it is written, and of the caller before its RIP moves")
    func order() throws {
        let test = try HookedGuest()
        let (holder, call) = try test.hold()
        let log = test.machine.log
        func index(_ isIt: @escaping (FakeMachine.Action) -> Bool) throws -> Int {
            try #require(log.firstIndex(where: isIt))
        }
        let toldOfHandler = try index { if case .announced(.handler(_?)) = $0 { true } else { false } }
        let wroteHandler = try index { if case .wroteCode = $0 { true } else { false } }
        let wroteByte = try index { if case .wroteData(_, [1]) = $0 { true } else { false } }
        let toldOfCaller = try index { $0 == .announced(.hold(HeldCaller(slot: holder.slot, registers: call))) }
        let movedCaller = try index { if case .wroteRegisters = $0 { true } else { false } }
        #expect(toldOfHandler < wroteHandler && wroteHandler < wroteByte && wroteByte < movedCaller)
        #expect(toldOfCaller < movedCaller)
        guard case .announced(.handler(let location?)) = log[toldOfHandler] else { return }
        #expect(location.entry == test.guest.entry && location.address == test.slack)
        #expect(location.physical.rawValue == test.slackPhysical && location.length == DetourHandler.length)
        #expect(location.waitOffset == test.handler.range(of: .spinWait).lowerBound)
    }

    @Test("Slack that is not zero any more is left alone, wherever the byte is", arguments: [0, 1, -1])
    func usedSlack(offset: Int) throws {
        let test = try HookedGuest()
        let place = test.slackPhysical + UInt64(offset < 0 ? DetourHandler.length - 1 : offset)
        test.guest.ram.store(UInt8(0xcc), at: place)
        let call = test.guest.call()
        test.machine.registers[0] = call
        guard
            case .slackInUse(let address) = Self.error({ () throws(DetourError) in
                _ = try test.detour.hold(VCPU(0), call)
            })
        else {
            Issue.record("it was written to")
            return
        }
        #expect(address == test.slack && test.machine.actions == [] && test.machine.registers[0] == call)
        #expect(!test.detour.isHandlerPresent && test.detour.holders.isEmpty)
    }

    @Test("Bytes beside the handler's place may be anything")
    func besideSlack() throws {
        let test = try HookedGuest()
        let after = test.slackPhysical + UInt64(DetourHandler.length)
        for place in [test.slackPhysical - 1, after] { test.guest.ram.store(UInt8(0xcc), at: place) }
        _ = try test.hold()
        #expect(test.guest.ram.load(UInt8.self, at: test.slackPhysical - 1) == 0xcc)
        #expect(test.guest.ram.load(UInt8.self, at: after) == 0xcc)
    }

    @Test(
        "A caller with interrupts off, above PASSIVE_LEVEL, or without slack cannot wait, and is not changed",
        arguments: 0..<3)
    func cannotWait(reason: Int) throws {
        let test = try HookedGuest(hasSlack: reason != 2)
        var call = test.guest.call()
        if reason == 0 { call.rflags &= ~0x200 }
        if reason == 1 { call.control.cr8 = 1 }
        test.machine.registers[0] = call
        guard case .cannotWait = Self.error({ () throws(DetourError) in _ = try test.detour.hold(VCPU(0), call) })
        else {
            Issue.record("it was held")
            return
        }
        #expect(test.machine.log == [] && test.slackIsZero && test.machine.registers[0] == call)
    }

    @Test("Slack whose page is gone holds nobody")
    func absentSlack() throws {
        let test = try HookedGuest()
        test.guest.kernel.setEntry(of: test.slack.rawValue, to: 0)
        let call = test.guest.call()
        test.machine.registers[0] = call
        guard case .memory = Self.error({ () throws(DetourError) in _ = try test.detour.hold(VCPU(0), call) }) else {
            Issue.record("it was held")
            return
        }
        #expect(test.machine.log == [])
    }

    @Test("Without a delay function or shared data the handler gets zeroes for them")
    func withoutMeans() throws {
        let test = try HookedGuest(means: WaitingMeans(delayFunction: nil, sharedData: nil))
        _ = try test.hold()
        #expect(test.value(of: .delayFunction) == 0 && test.value(of: .sharedData) == 0)
    }
}
