import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

@Suite("Waiting in the guest's own delay function") struct DelayCallTests {
    static func guest(vcpus: Int = 1, jump: Bool = false) throws -> HookedGuest {
        // The same kernel, to know the instruction before the hooked guest is made.
        let code = FakeGuest()
        code.addPush()
        let push = try #require(PushInstruction(near: code.entry, in: try code.locateKernel().memory))
        let test = try HookedGuest(
            vcpus: vcpus, waiting: .delay, jump: jump,
            means: WaitingMeans(
                delayFunction: HookedGuest.delayFunction, sharedData: SharedUserData.address, push: push))
        test.guest.addPush()
        return test
    }

    static func word(_ test: HookedGuest, _ address: UInt64) -> UInt64 {
        (try? test.guest.locateKernel().memory.load(UInt64.self, at: GuestVirtualAddress(address))) ?? 0
    }

    @Test("The caller stands in a call of the delay function that comes back to the entry, and Vigil wrote no byte")
    func sends() throws {
        let test = try Self.guest()
        let call = test.guest.call()
        test.machine.registers[0] = call
        let holder = try test.detour.hold(VCPU(0), call, for: .milliseconds(30))
        var expected = call
        expected.rip = HookedGuest.delayFunction.rawValue
        expected.rsp = call.rsp - 0x30
        (expected.rcx, expected.rdx, expected.r8) = (0, 0, call.rsp - 8)
        #expect(test.machine.registers[0] == expected)
        #expect(Self.word(test, call.rsp) == FakeGuest.returnAddress)
        #expect(Int64(bitPattern: Self.word(test, call.rsp - 8)) == -300_000)
        #expect(Self.word(test, call.rsp - 0x30) == test.guest.entry.rawValue)
        // As the ABI has it at a function's entry: 8 more than a multiple of 16.
        #expect(expected.rsp % 16 == 8 && holder.isInDelay)
        #expect(test.effects.counts.codeBytesWritten == 0 && test.effects.counts.dataBytesWritten == 0)
        #expect(test.effects.counts.steps == 2 && !test.detour.isHandlerPresent && test.slackIsZero)
        #expect(test.machine.violations == [])
    }

    @Test("The guardian knows the caller's registers before the first of them changes, and when it is on its way")
    func announced() throws {
        let test = try Self.guest()
        let call = test.guest.call()
        test.machine.registers[0] = call
        let holder = try test.detour.hold(VCPU(0), call)
        let told = test.machine.announcements
        let delay = HeldCaller.Delay(entry: test.guest.entry, arrivalRSP: call.rsp - 0x28, vcpu: VCPU(0))
        #expect(told.first == .hold(HeldCaller(slot: holder.slot, registers: call, delay: delay)))
        #expect(told.last == .sentOff(slot: holder.slot))
        test.machine.clearLog()
        var back = call
        back.rsp = delay.arrivalRSP
        back.rcx = 99
        test.machine.registers[0] = back
        #expect(test.detour.returningHolder(back) == holder && test.detour.returningHolder(call) == nil)
        try test.detour.takeBack(holder, VCPU(0), back)
        #expect(test.machine.registers[0] == call && test.detour.holders.isEmpty)
        #expect(test.machine.announcements.first == told.first)
        #expect(test.machine.announcements.last == .release(slot: holder.slot))
    }

    @Test("A caller that comes back early is sent off again, and what still lies on its stack is not pushed again")
    func sendsAgain() throws {
        let test = try Self.guest()
        let call = test.guest.call()
        test.machine.registers[0] = call
        let holder = try test.detour.hold(VCPU(0), call, for: .seconds(3))
        #expect(Int64(bitPattern: Self.word(test, call.rsp - 8)) == -2_500_000)
        var back = call
        back.rsp = call.rsp - 0x28
        (back.rcx, back.rdx, back.r8, back.rax) = (7, 7, 7, 0)
        func comesBack(_ left: Duration) throws -> Bool {
            test.machine.registers[0] = back
            return try test.detour.sendAgain(holder, VCPU(0), back, errand: .wait(left))
        }
        #expect(try comesBack(.seconds(2)))
        #expect(test.effects.counts.steps == 2 && test.machine.registers[0].rsp == call.rsp - 0x30)
        // An interrupt's frame has overwritten the return address below the stack pointer.
        test.guest.kernel.write(UInt64(0xbad), at: call.rsp - 0x30)
        #expect(try comesBack(.seconds(2)))
        #expect(test.effects.counts.steps == 3)
        #expect(Self.word(test, call.rsp - 0x30) == test.guest.entry.rawValue)
        // Another interval.
        #expect(try comesBack(.milliseconds(5)))
        #expect(Int64(bitPattern: Self.word(test, call.rsp - 8)) == -50_000)
        #expect(test.machine.violations == [])
    }

    @Test("A step that ends with nothing executed is repeated")
    func emptySteps() throws {
        let test = try Self.guest()
        let execute = test.machine.onStep
        var count = 0
        test.machine.onStep = { registers in
            count += 1
            if count % 3 == 0 { execute(&registers) }
        }
        let call = test.guest.call()
        test.machine.registers[0] = call
        _ = try test.detour.hold(VCPU(0), call)
        #expect(count == 6 && test.machine.registers[0].rip == HookedGuest.delayFunction.rawValue)
        #expect(Self.word(test, call.rsp - 0x30) == test.guest.entry.rawValue)
    }

    @Test("A push that does not push leaves the caller as it was, and says why")
    func pushFails() throws {
        let test = try Self.guest()
        // The step ends in the guest's page-fault handler.
        test.machine.onStep = { registers in
            registers.rip = 0xffff_f806_4a20_9000
            registers.rsp -= 0x30
        }
        let call = test.guest.call()
        test.machine.registers[0] = call
        #expect(throws: DetourError.self) { try test.detour.hold(VCPU(0), call) }
        #expect(test.machine.registers[0] == call && test.detour.holders.isEmpty)
        #expect(test.machine.announcements.last == .release(slot: 0))
    }

    @Test("Without a stack below the caller, and without the means, a caller is not held")
    func noMeans() throws {
        let test = try Self.guest()
        var call = test.guest.call()
        call.rsp = 0xffff_b9ff_0000_0008
        #expect(throws: DetourError.self) { try test.detour.hold(VCPU(0), call) }
        let bare = try HookedGuest(waiting: .delay, means: WaitingMeans(delayFunction: nil, sharedData: nil))
        #expect(throws: DetourError.self) { try bare.detour.hold(VCPU(0), bare.guest.call()) }
        #expect(test.machine.actions.isEmpty && bare.machine.actions.isEmpty)
    }

    @Test("More callers wait at once than the handler has slots for")
    func many() throws {
        let test = try Self.guest()
        for index in 0..<12 {
            let call = test.guest.call(thread: index % 8, depth: UInt64(index / 8) * 0x100)
            test.machine.registers[0] = call
            _ = try test.detour.hold(VCPU(0), call)
        }
        #expect(Set(test.detour.holders.map(\.slot)).count == 12)
        #expect(Set(test.detour.holders.map(\.arrivalRSP)).count == 12)
    }
}
