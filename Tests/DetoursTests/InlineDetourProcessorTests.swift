import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import X86

@Suite("Inline detour and vCPUs") struct InlineDetourProcessorTests {
    /// push rbx; jrcxz over to the RET; mov rax, rcx; ret
    static let branching: [UInt8] = [0x53, 0xe3, 0x04, 0x48, 0x8b, 0xc1, 0x90, 0xc3, 0xc3]

    @Test("vCPUs inside the replaced bytes go on in the copy, and back when disarming; others stay")
    func moved() throws {
        let test = try InlineDetourGuest(code: Self.branching, vcpus: 4)
        let copy = test.slack.address + 1
        test.setRIP(test.entry)
        test.setRIP(test.entry + 1, vcpu: 1)
        test.setRIP(test.entry + 3, vcpu: 2)
        test.setRIP(test.entry + 6, vcpu: 3)
        try test.detour.arm()
        #expect((0..<4).map { test.rip(vcpu: $0) } == [test.entry, copy + 1, copy + 10, test.entry + 6])
        #expect(try test.detour.disarm() == .clean)
        let back = (0..<4).map { test.rip(vcpu: $0) }
        #expect(back == [test.entry, test.entry + 1, test.entry + 3, test.entry + 6])
        #expect(test.machine.violations.isEmpty)
    }

    @Test("From every instruction of the handler a vCPU comes back to where it would be")
    func back() throws {
        // The stop point, push, jrcxz, the jump against it, the jump for it, mov, the jump back.
        let expected: [(UInt64, UInt64)] = [(0, 0), (1, 0), (2, 1), (4, 3), (6, 7), (11, 3), (14, 6)]
        for (offset, original) in expected {
            let test = try InlineDetourGuest(code: Self.branching)
            let before = test.snapshot
            try test.detour.arm()
            test.setRIP(test.slack.address + offset)
            #expect(try test.detour.disarm() == .clean, "\(offset)")
            #expect(test.rip() == test.entry + original, "\(offset)")
            #expect(test.snapshot == before)
        }
    }

    @Test("A vCPU between the handler's instructions keeps the handler; it goes when the vCPU has gone")
    func between() throws {
        let test = try InlineDetourGuest(stopPoint: .hypercall)
        try test.detour.arm()
        let plan = try #require(test.detour.armed)
        test.setRIP(test.slack.address + 1)
        guard case .handlerKept = try test.detour.disarm() else {
            Issue.record("the handler was taken from under a vCPU")
            return
        }
        #expect(test.bytes(test.entry, 6) == plan.original)
        #expect(test.bytes(test.slack.address, plan.handler.count) == plan.handler)
        // Armed again, the handler that is there is used.
        try test.detour.arm()
        #expect(test.bytes(test.entry, 6) == plan.patch)
        test.setRIP(test.entry + 6)
        #expect(try test.detour.disarm() == .clean)
    }

    @Test("A vCPU in the middle of a replaced instruction prevents arming; one just outside does not")
    func middle() throws {
        let test = try InlineDetourGuest()
        let before = test.snapshot
        for offset in [1, 3, 4, 5] as [UInt64] {
            test.setRIP(test.entry + offset)
            #expect(throws: InlineDetourError.self) { try test.detour.arm() }
            #expect(test.snapshot == before)
        }
        test.setRIP(test.entry - 1)
        try test.detour.arm()
        #expect(test.rip() == test.entry - 1)
    }

    @Test("Threads without a vCPU: one inside the replaced bytes prevents arming, one in the handler keeps it")
    func threads() throws {
        let test = try InlineDetourGuest()
        let before = test.snapshot
        #expect {
            try test.detour.arm(threadsAt: [test.entry.rawValue, test.entry.rawValue + 2])
        } throws: {
            if case .threadInside(test.entry + 2)? = $0 as? InlineDetourError { true } else { false }
        }
        #expect(test.snapshot == before)
        try test.detour.arm(threadsAt: [test.entry.rawValue, test.entry.rawValue + 6])
        guard case .handlerKept = try test.detour.disarm(threadsAt: [test.slack.address.rawValue + 3]) else {
            Issue.record("the handler was taken from under a thread")
            return
        }
        #expect(try test.detour.disarm(threadsAt: [test.entry.rawValue]) == .clean)
        #expect(test.snapshot == before)
    }

    @Test("With a call among the moved instructions the handler stays: its address may be on a stack")
    func call() throws {
        let test = try InlineDetourGuest(code: [0xe8, 0, 1, 0, 0, 0xc3])
        try test.detour.arm()
        let plan = try #require(test.detour.armed)
        guard case .handlerKept(let why) = try test.detour.disarm() else {
            Issue.record("the handler was taken from under a call")
            return
        }
        #expect(why.contains("call"))
        #expect(test.bytes(test.entry, 5) == plan.original)
        #expect(test.bytes(test.slack.address, plan.handler.count) == plan.handler)
    }

    /// The operations of arming and disarming that can fail.
    static let operations: [FakeMachine.Operation] = [.announce, .writeCode, .setRegisters]

    @Test("Whichever change fails, the guest is as it was: arming", arguments: 0..<4)
    func failingArm(_ index: Int) throws {
        for operation in Self.operations {
            let test = try InlineDetourGuest(pageOffset: 0xffd, vcpus: 2)
            let before = test.snapshot
            for vcpu in 0..<2 { test.setRIP(test.entry + 2, vcpu: vcpu) }
            let registers = test.machine.registers
            var count = 0
            test.machine.onOperation = { performed, machine in
                guard performed == operation else { return }
                if count == index { machine.failures[operation] = [.gone("test")] }
                count += 1
            }
            do throws(InlineDetourError) {
                try test.detour.arm()
            } catch {
                guard case .hypervisor(.gone) = error else {
                    Issue.record("\(operation) \(index): \(error)")
                    continue
                }
                // The pause itself is announced too, and the resume, after which it is too late to take back.
                if test.detour.armed == nil {
                    #expect(test.snapshot == before && test.machine.registers == registers)
                }
            }
            #expect(test.machine.violations.isEmpty)
        }
    }

    @Test("Whichever change fails when disarming, trying again ends it", arguments: 0..<5)
    func failingDisarm(_ index: Int) throws {
        for operation in Self.operations {
            let test = try InlineDetourGuest(pageOffset: 0xffd, vcpus: 2)
            let before = test.snapshot
            try test.detour.arm()
            let plan = try #require(test.detour.armed)
            for vcpu in 0..<2 { test.setRIP(test.slack.address + 1, vcpu: vcpu) }
            var count = 0
            test.machine.onOperation = { performed, machine in
                guard performed == operation else { return }
                if count == index { machine.failures[operation] = [.gone("test")] }
                count += 1
            }
            _ = try? test.detour.disarm()
            let entry = test.bytes(test.entry, plan.patch.count)
            #expect(entry == (test.detour.armed == nil ? plan.original : plan.patch), "\(operation) \(index)")
            test.machine.onOperation = { _, _ in }
            test.machine.failures = [:]
            #expect(try test.detour.disarm() == .clean)
            #expect(test.snapshot == before && test.rip() == test.entry && test.rip(vcpu: 1) == test.entry)
        }
    }

    @Test("A detour that is half there says so, and can be disarmed")
    func half() throws {
        let test = try InlineDetourGuest(pageOffset: 0xffd)
        let before = test.snapshot
        var count = 0
        // The handler, the entry's first part, its second part fails, and so does taking it back.
        test.machine.onOperation = { performed, machine in
            guard performed == .writeCode else { return }
            count += 1
            if count == 3 || count == 4 { machine.failures[.writeCode] = [.gone("test \(count)")] }
        }
        #expect { try test.detour.arm() } throws: {
            if case .unfinished? = $0 as? InlineDetourError { true } else { false }
        }
        let entry = test.bytes(test.entry, 6)
        let plan = try #require(test.detour.armed)
        #expect(entry != plan.original && entry != plan.patch)
        test.machine.onOperation = { _, _ in }
        #expect(try test.detour.disarm() == .clean)
        #expect(test.snapshot == before)
    }
}
