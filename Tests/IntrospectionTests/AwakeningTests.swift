import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

@testable import Introspection

@Suite("From a hibernation to the resume") struct AwakeningTests {
    let journal = MemoryJournal()

    /// A session with a guest in a QEMU of its own.
    func run(
        _ guest: FakeGuest = FakeGuest(), process: Int32 = 100, startedAgo age: Duration = .seconds(10),
        awake: Duration = .seconds(3)
    ) -> EngineRun {
        let run = EngineRun(guest)
        run.options.journal = journal
        run.options.session = "session-\(process)"
        run.machine.identity.processID = process
        run.machine.identity.processStart = HostClock.sinceBoot - age
        let time = UInt64(awake / .nanoseconds(100))
        for (offset, value) in [(8, time), (12, time >> 32), (16, time >> 32)] as [(UInt64, UInt64)] {
            guest.kernel.write(UInt32(truncatingIfNeeded: value), at: SharedUserData.address.rawValue + offset)
        }
        return run
    }

    /// What a guest does that hibernates: asks for it, and is gone.
    func hibernation(_ run: EngineRun, arguments: (UInt32, UInt32) = (3, 5)) -> [(FakeMachine) -> MachineEvent?] {
        [
            run.entry { $0.call(arguments.0, arguments.1) },
            { machine in
                machine.become(.poweredOff)
                return .host(.poweredOff(byGuest: true))
            },
            { _ in .gone(reason: "over") },
        ]
    }

    @Test("A hibernation is recorded, and the resume in another machine names its session and request, once")
    func named() throws {
        let before = run()
        _ = before.run(hibernation(before))
        #expect(before.events == ["attached", "requested 1 hibernate", "outcome 1 hibernated", "detached"])
        #expect(before.attachments.first?.session == "session-100")
        let record = try #require(journal.records.values.first)
        #expect(record.request == 1 && record.session == "session-100" && record.awakeTime == .seconds(3))

        let after = run(process: 101, awake: .seconds(4))
        _ = after.run()
        #expect(after.events == ["attached", "awoken", "detached"])
        #expect(after.awakenings == [Awakening(record)] && after.awakenings[0].sign == .record)
        #expect(journal.records.isEmpty)

        let again = run(process: 101, awake: .seconds(5))
        _ = again.run()
        #expect(again.events == ["attached", "detached"])
    }

    @Test("A fast startup's shutdown is recorded too; a shutdown, a refusal and a reset are not")
    func recorded() {
        for (arguments, count) in [((6, 5), 1), ((4, 5), 1), ((6, 6), 0)] as [((UInt32, UInt32), Int)] {
            journal.records = [:]
            let session = run()
            _ = session.run(hibernation(session, arguments: arguments))
            #expect(journal.records.count == count, "\(arguments)")
        }
        journal.records = [:]
        let refused = run()
        _ = refused.run([refused.entry { $0.call(3, 5) }, refused.exit({ $0.call(3, 5) }, status: 0xc000_02d3)])
        let reset = run()
        _ = reset.run([reset.entry { $0.call(3, 5) }, { _ in .host(.reset(byGuest: true)) }])
        #expect(journal.records.isEmpty)
    }

    @Test("Of several requests that were open, the record names the one that asked for the hibernation")
    func several() {
        let session = run()
        var script = hibernation(session)
        script.insert(session.entry { $0.call(5, 6, thread: 1) }, at: 1)
        script.insert(session.entry { $0.call(5, 6, thread: 2) }, at: 0)
        _ = session.run(script)
        #expect(journal.records.values.map(\.request) == [2])
    }

    @Test("Another boot, at another base, is not the one that hibernated")
    func otherBoot() {
        let before = run()
        _ = before.run(hibernation(before))
        var options = SyntheticKernelOptions()
        options.base += 0x20_0000
        let after = run(FakeGuest(options), process: 101)
        _ = after.run()
        #expect(after.events == ["attached", "detached"] && journal.records.count == 1)
    }

    @Test("The same boot in the same machine has not awoken, and its record stays")
    func sameMachine() {
        let first = run()
        _ = first.run(hibernation(first))
        let second = run()
        second.machine.identity = first.machine.identity
        _ = second.run()
        #expect(second.events == ["attached", "detached"] && journal.records.count == 1)
        // The same process number, at another time.
        let third = run(startedAgo: .seconds(9))
        _ = third.run()
        #expect(third.events == ["attached", "awoken", "detached"])
    }

    @Test("A guest that was awake for less than the one that hibernated is another one")
    func younger() {
        let before = run(awake: .seconds(3))
        _ = before.run(hibernation(before))
        let after = run(process: 101, awake: .seconds(2))
        _ = after.run()
        #expect(after.events == ["attached", "detached"])
    }

    @Test("Each of several values tells two boots apart")
    func identity() throws {
        let kernel = try FakeGuest().locateKernel()
        let boot = BootIdentity(of: kernel)
        #expect(boot.systemPageTables == kernel.systemCR3 && boot.systemProcess == kernel.initialSystemProcess)
        var others = Array(repeating: boot, count: 5)
        others[0].kernel.base = GuestVirtualAddress(boot.kernel.base.rawValue + 0x20_0000)
        others[1].kernel.build += 1
        others[2].systemProcess = GuestVirtualAddress(boot.systemProcess.rawValue + 0x40)
        others[3].systemPageTables += 0x1000
        others[4].kernel.timeDateStamp += 1
        for other in others { #expect(other != boot) }
    }

    @Test("Without a record, a guest that was awake for longer than its machine exists has awoken")
    func older() {
        let after = run(startedAgo: .seconds(10), awake: .seconds(100))
        _ = after.run()
        #expect(after.events == ["attached", "awoken", "detached"] && after.awakenings == [.older])
        #expect(after.awakenings[0].session == nil && after.awakenings[0].request == nil)
    }

    @Test("A guest that slept is as old as its machine: time asleep does not count")
    func slept() {
        let guest = FakeGuest()
        guest.kernel.write(95 * 10_000_000 as UInt64, at: SharedUserData.address.rawValue + 0x3b0)
        let after = run(guest, startedAgo: .seconds(10), awake: .seconds(100))
        _ = after.run()
        #expect(after.events == ["attached", "detached"])
    }

    @Test("Where the machine's age is not known, or the guest's clock says nonsense, nothing is said")
    func unknownAge() {
        let remote = run(awake: .seconds(100))
        remote.machine.identity.processStart = nil
        _ = remote.run()
        #expect(remote.events == ["attached", "detached"])
        let guest = FakeGuest()
        guest.kernel.write(UInt64.max / 2, at: SharedUserData.address.rawValue + 0x3b0)
        let nonsense = run(guest, awake: .seconds(100))
        _ = nonsense.run()
        #expect(nonsense.events == ["attached", "detached"])
    }

    @Test("The border: two seconds and a thousandth of the machine's age")
    func border() {
        for age in [Duration.zero, .seconds(1), .seconds(3600), .seconds(30 * 86400)] {
            let border = age + .seconds(2) + age / 1000
            #expect(!Awakening.isOlder(awake: border, than: age))
            #expect(Awakening.isOlder(awake: border + .nanoseconds(100), than: age))
        }
    }

    @Test("A journal that fails is a warning, and the session goes on")
    func failingJournal() {
        journal.failure = HibernationJournalError("it is full")
        let session = run()
        _ = session.run(hibernation(session))
        #expect(session.events == ["attached", "requested 1 hibernate", "outcome 1 hibernated", "detached"])
        #expect(session.warnings == ["it is full", "it is full"] && session.error == nil)
    }
}
