import HypervisorInterface
import PowerTransitions
import TestSupport
import Testing
import WindowsGuest
import X86

@Suite("Telling requests from other calls") struct RequestTests {
    @Test("A kernel-mode call is a request, stepped over the entry, with its caller named")
    func kernelCall() throws {
        let test = try GuardedGuest()
        let call = test.guest.call(5, 6, from: .kernel, thread: 2)
        try test.enter(call)
        #expect(test.events == ["requested 1 reboot kernel"])
        let caller = try #require(test.callers.first)
        #expect(caller.thread.rawValue == test.guest.threads[2].object && caller.threadID == 0x1008)
        #expect(caller.processName == "csrss.exe" && caller.processID == test.guest.kernel.processes[2].id)
        #expect(caller.returnAddress.rawValue == FakeGuest.returnAddress)
        #expect(test.machine.actions.contains(.stepped(VCPU(0))))
        #expect(test.machine.registers[0].rip != test.guest.entry.rawValue)
        #expect(test.machine.sites == [test.guest.entrySite, test.guest.watch(of: call)])
        #expect(test.powerGuard.openTransitions == 1 && test.powerGuard.heldCallers == 0)
        #expect(test.machine.violations == [])
    }

    @Test("An unprivileged user's call is ignored at its return, with its status, and is no request")
    func unprivileged() throws {
        let test = try GuardedGuest()
        let call = test.guest.call(from: .user)
        try test.enter(call)
        // Not yet: the kernel may still call again.
        #expect(test.events == [])
        try test.leave(call, status: 0xc000_0061)
        #expect(test.events == ["ignored user 0xc0000061"])
        #expect(test.powerGuard.openTransitions == 0 && test.powerGuard.lastRequest == 0)
        #expect(test.machine.sites == [test.guest.entrySite])
        #expect(test.powerGuard.counts.entries == 1 && test.powerGuard.counts.returns == 1)
        #expect(test.machine.violations == [])
    }

    @Test("A privileged user's call is one request: the kernel-mode call that it leads to")
    func privileged() throws {
        let test = try GuardedGuest()
        let outer = test.guest.call(4, 6, from: .user)
        try test.enter(outer)
        let inner = test.guest.call(4, 6, from: .kernel, depth: 0x180)
        try test.enter(inner)
        #expect(test.events == ["requested 1 shutdown kernel"])
        try test.leave(inner, status: 0xc000_0001)
        try test.leave(outer, status: 0xc000_0001)
        #expect(test.events == ["requested 1 shutdown kernel", "outcome 1 shutdown refused 0xc0000001"])
        #expect(test.powerGuard.counts.entries == 2 && test.powerGuard.counts.returns == 2)
        #expect(test.machine.sites == [test.guest.entrySite] && test.machine.violations == [])
    }

    @Test("Another thread's kernel-mode call does not answer a user's call")
    func otherThread() throws {
        let test = try GuardedGuest()
        let user = test.guest.call(4, 6, from: .user, thread: 0)
        try test.enter(user)
        let kernel = test.guest.call(5, 6, from: .kernel, thread: 1)
        try test.enter(kernel)
        try test.leave(user, status: 0xc000_0061)
        #expect(test.events == ["requested 1 reboot kernel", "ignored user 0xc0000061"])
    }

    @Test(
        "Arguments that every kernel rejects are ignored at once, from either mode",
        arguments: [(0, 5), (9, 5), (5, 0), (5, 7), (UInt32.max, UInt32.max)] as [(UInt32, UInt32)])
    func badArguments(action: UInt32, state: UInt32) throws {
        for mode in [PreviousMode.user, .kernel] {
            let test = try GuardedGuest(hold: .seconds(1))
            let call = test.guest.call(action, state, from: mode)
            try test.enter(call)
            #expect(test.events == ["ignored \(mode) null"])
            #expect(!test.isInHandler() && test.machine.registers[0].rip != test.guest.entry.rawValue)
            try test.leave(call, status: 0xc000_000d)
            #expect(test.events.count == 1)
            #expect(test.powerGuard.counts.returns == 1)
        }
    }

    @Test("Arguments that some kernel may accept are a request, even of unknown meaning")
    func unknownMeaning() throws {
        let test = try GuardedGuest()
        let call = test.guest.call(7, 1)
        try test.enter(call)
        try test.leave(call, status: 0)
        #expect(test.events == ["requested 1 unknown kernel", "outcome 1 unknown returned 0x0"])
    }

    @Test("Where re-entry is not proved a user's call is the request, and its nested kernel-mode call no second one")
    func reentryNotProved() throws {
        let test = try GuardedGuest(reentryIsProved: false)
        let outer = test.guest.call(5, 6, from: .user)
        try test.enter(outer)
        let inner = test.guest.call(5, 6, from: .kernel, depth: 0x100)
        try test.enter(inner)
        #expect(test.events == ["requested 1 reboot user"])
        try test.leave(inner, status: 0xc000_0001)
        #expect(test.events == ["requested 1 reboot user"])
        try test.leave(outer, status: 0xc000_0001)
        #expect(test.events == ["requested 1 reboot user", "outcome 1 reboot refused 0xc0000001"])
        // Once it is over, the thread's next kernel-mode call is a request of its own.
        try test.enter(test.guest.call(5, 6, from: .kernel, depth: 0x100))
        #expect(test.events.last == "requested 2 reboot kernel")
    }

    @Test("Where re-entry is not proved, another thread's kernel-mode call is a request of its own")
    func reentryNotProvedOtherThread() throws {
        let test = try GuardedGuest(reentryIsProved: false)
        try test.enter(test.guest.call(5, 6, from: .user, thread: 0))
        try test.enter(test.guest.call(4, 6, from: .kernel, thread: 1))
        #expect(test.events == ["requested 1 reboot user", "requested 2 shutdown kernel"])
    }

    @Test("A user's call whose kernel-mode call has arguments that all kernels reject leaves it ignored once")
    func rejectedInner() throws {
        let test = try GuardedGuest()
        let outer = test.guest.call(5, 6, from: .user)
        try test.enter(outer)
        let inner = test.guest.call(5, 0, from: .kernel, depth: 0x100)
        try test.enter(inner)
        try test.leave(inner, status: 0xc000_000d)
        try test.leave(outer, status: 0xc000_000d)
        #expect(test.events == ["ignored kernel null"])
    }

    @Test("A fault on the first instruction brings the same call back, not a second one")
    func faultAtEntry() throws {
        let test = try GuardedGuest(hold: nil)
        let call = test.guest.call(5, 6)
        // The step ends in the page-fault handler.
        test.machine.onStep = { $0.rip = test.guest.kernel.address("KiTrap14") }
        try test.enter(call)
        try test.enter(call)
        test.machine.onStep = { $0.rip &+= 5 }
        try test.enter(call)
        #expect(test.events == ["requested 1 reboot kernel"])
        #expect(test.powerGuard.counts.entries == 1)
        try test.leave(call, status: 0)
        #expect(test.events.last == "outcome 1 reboot returned 0x0")
        // The same thread on the same stack, later: that is another call.
        try test.enter(call)
        #expect(test.events.last == "requested 2 reboot kernel" && test.powerGuard.counts.entries == 2)
        #expect(test.machine.violations == [])
    }

    @Test("While one call's fault is handled, another thread's call is its own")
    func faultAndOtherThread() throws {
        let test = try GuardedGuest()
        test.machine.onStep = { $0.rip = test.guest.kernel.address("KiTrap14") }
        let first = test.guest.call(5, 6, thread: 0)
        try test.enter(first)
        test.machine.onStep = { $0.rip &+= 5 }
        try test.enter(test.guest.call(4, 6, thread: 1))
        _ = test.guest.call(5, 6, thread: 0)
        try test.enter(first)
        #expect(test.events == ["requested 1 reboot kernel", "requested 2 shutdown kernel"])
        #expect(test.powerGuard.counts.entries == 2)
    }

    @Test("A caller whose mode cannot be read may be going down all the same: it is a request, and followed")
    func unreadableMode() throws {
        let test = try GuardedGuest()
        let call = test.guest.call(4, 6)
        test.guest.kernel.write(UInt8(7), at: test.guest.threads[0].object + 0x232)
        try test.enter(call)
        #expect(test.events == ["requested 1 shutdown unknown"])
        #expect(test.callers[0].thread.rawValue == test.guest.threads[0].object)
        try test.leave(call, status: 0xc000_0001)
        #expect(test.events.last == "outcome 1 shutdown refused 0xc0000001")
    }

    /// A call of a thread that cannot be told.
    static func nobody(_ test: GuardedGuest, _ action: UInt32, thread: Int) -> Registers {
        var call = test.guest.call(action, 6, thread: thread)
        call.gsBase = 0xffff_9999_0000_0000
        return call
    }

    @Test("A caller whose thread cannot be read is a request too; bad arguments are ignored even then")
    func unreadableThread() throws {
        let test = try GuardedGuest()
        let call = Self.nobody(test, 4, thread: 0)
        try test.enter(call)
        try test.leave(call, status: 0)
        try test.enter(Self.nobody(test, 77, thread: 0))
        #expect(
            test.events == ["requested 1 shutdown unknown", "outcome 1 shutdown returned 0x0", "ignored unknown null"])
    }

    @Test("Two callers whose threads cannot be read are two, whatever their stacks")
    func twoUnreadableThreads() throws {
        let test = try GuardedGuest()
        let calls = [Self.nobody(test, 4, thread: 0), Self.nobody(test, 5, thread: 1)]
        for call in calls { try test.enter(call) }
        #expect(test.events == ["requested 1 shutdown unknown", "requested 2 reboot unknown"])
        #expect(test.machine.sites == Set([test.guest.entrySite] + calls.map { test.guest.watch(of: $0) }))
        try test.leave(calls[0], status: 0xc000_0001)
        #expect(test.events.last == "outcome 1 shutdown refused 0xc0000001")
    }
}
