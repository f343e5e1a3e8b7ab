import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

@Suite("Inline detour") struct InlineDetourTests {
    /// E9 from the entry to the slack.
    static func jump(from source: GuestVirtualAddress, to target: GuestVirtualAddress) -> [UInt8] {
        let distance = target.rawValue &- source.rawValue &- 5
        return [0xe9] + (0..<4).map { UInt8(truncatingIfNeeded: distance >> (8 * $0)) }
    }

    @Test("A plan names every byte and changes none", arguments: InlineDetourPlan.StopPoint.allCases)
    func plan(_ stopPoint: InlineDetourPlan.StopPoint) throws {
        let test = try InlineDetourGuest(allowed: false, stopPoint: stopPoint)
        let before = test.snapshot
        let plan = try test.detour.plan()
        #expect(plan.original == Array(InlineDetourGuest.plain[..<6]))
        #expect(plan.patch == Self.jump(from: test.entry, to: test.slack.address) + [0x90])
        let stop: [InlineDetourPlan.StopPoint: [UInt8]] = [
            .none: [], .outOfBand: [0x90], .breakpoint: [0xcc], .hypercall: [0x0f, 0x01, 0xc1],
        ]
        let prefix = try #require(stop[stopPoint])
        let back = Self.jump(from: test.slack.address + UInt64(prefix.count + 6), to: test.entry + 6)
        #expect(plan.handler == prefix + plan.original + back)
        #expect(plan.handler.count <= InlineDetourPlan.maximumHandlerLength)
        #expect(test.snapshot == before && test.machine.actions.isEmpty)
    }

    @Test("A visible patch needs the user's word")
    func visible() throws {
        let test = try InlineDetourGuest(allowed: false)
        let before = test.snapshot
        #expect { try test.detour.arm() } throws: { error in
            guard case .visible? = error as? InlineDetourError else { return false }
            return "\(error)".contains("--allow-visible-patches")
        }
        #expect(test.snapshot == before && test.machine.actions.isEmpty)
    }

    @Test("Armed, handler and jump are there, written in one pause, the handler first; disarmed, all is as it was")
    func armAndDisarm() throws {
        let test = try InlineDetourGuest()
        let before = test.snapshot
        let plan = try test.detour.plan()
        try test.detour.arm()
        #expect(test.bytes(test.entry, 6) == plan.patch)
        #expect(test.bytes(test.slack.address, plan.handler.count) == plan.handler)
        let (entry, slack) = (try test.physical(test.entry), try test.physical(test.slack.address))
        #expect(
            test.machine.actions == [
                .paused, .wroteCode(slack, plan.handler), .wroteCode(entry, plan.patch), .resumed,
            ])
        try test.detour.arm()
        #expect(test.machine.actions.count == 4)

        test.machine.clearLog()
        #expect(try test.detour.disarm() == .clean)
        let zeroes = [UInt8](repeating: 0, count: plan.handler.count)
        #expect(
            test.machine.actions == [
                .paused, .wroteCode(entry, plan.original), .wroteCode(slack, zeroes), .resumed,
            ])
        #expect(test.snapshot == before)
        #expect(try test.detour.disarm() == .clean)
        #expect(test.machine.actions.count == 4 && test.machine.violations.isEmpty)
    }

    @Test("A machine that stands already is left standing")
    func standing() throws {
        let test = try InlineDetourGuest()
        test.machine.become(.paused)
        try test.detour.arm()
        try test.detour.disarm()
        #expect(!test.machine.actions.contains(.resumed) && test.machine.violations.isEmpty)
    }

    @Test("A prologue across two pages is written page by page", arguments: [0xffb, 0xffd, 0xfff] as [UInt64])
    func twoPages(_ offset: UInt64) throws {
        let test = try InlineDetourGuest(pageOffset: offset)
        let before = test.snapshot
        let plan = try test.detour.plan()
        try test.detour.arm()
        #expect(test.bytes(test.entry, 6) == plan.patch)
        let inFirst = Int(0x1000 - offset)
        let (first, second) = (try test.physical(test.entry), try test.physical(test.entry.page + 0x1000))
        #expect(
            test.machine.actions.suffix(3) == [
                .wroteCode(first, Array(plan.patch[..<inFirst])), .wroteCode(second, Array(plan.patch[inFirst...])),
                .resumed,
            ])
        #expect(try test.detour.disarm() == .clean)
        #expect(test.snapshot == before)
    }

    @Test("ENDBR64 stays at the entry, and the jump lies behind it")
    func landingPad() throws {
        let test = try InlineDetourGuest(code: [0xf3, 0x0f, 0x1e, 0xfa] + InlineDetourGuest.plain)
        let plan = try test.detour.plan()
        #expect(plan.patchAddress == test.entry + 4 && plan.original.count == 6)
        try test.detour.arm()
        #expect(test.bytes(test.entry, 4) == [0xf3, 0x0f, 0x1e, 0xfa])
        #expect(test.bytes(test.entry + 4, 6) == plan.patch)
    }

    @Test("A prologue that cannot be moved is refused with its sentence, in a plan and when arming")
    func prologue() throws {
        let test = try InlineDetourGuest(code: [0xe9, 0, 1, 0, 0])
        let before = test.snapshot
        for attempt in [{ _ = try test.detour.plan() }, { try test.detour.arm() }] as [() throws -> Void] {
            #expect { try attempt() } throws: {
                guard case .prologue(.alreadyHooked)? = $0 as? InlineDetourError else { return false }
                return "\($0)".contains("another hook")
            }
        }
        // push rbx; sub rsp, 28h; a loop back to the sub
        let inward = try InlineDetourGuest(code: [0x53, 0x48, 0x83, 0xec, 0x28, 0x75, 0xfa, 0xc3])
        #expect {
            try inward.detour.arm()
        } throws: {
            if case .prologue(.branchIntoReplacedBytes)? = $0 as? InlineDetourError { true } else { false }
        }
        #expect(test.snapshot == before)
    }

    @Test("Slack that is not zero, or too small, is left alone")
    func slack() throws {
        let test = try InlineDetourGuest()
        let handler = try test.detour.plan().handler
        test.guest.kernel.write(UInt8(1), at: test.slack.address.rawValue + UInt64(handler.count) - 1)
        let before = test.snapshot
        #expect { try test.detour.arm() } throws: {
            if case .slackInUse? = $0 as? InlineDetourError { true } else { false }
        }
        #expect(test.snapshot == before && test.detour.armed == nil)

        let available = test.slack.available
        let small = try InlineDetourGuest(slackOffset: available - UInt64(handler.count) + 1)
        #expect { try small.detour.plan() } throws: {
            if case .slackTooSmall? = $0 as? InlineDetourError { true } else { false }
        }
        let enough = try InlineDetourGuest(slackOffset: available - UInt64(handler.count))
        try enough.detour.arm()
    }

    @Test("An entry whose page is not present cannot be armed now")
    func notPresent() throws {
        let test = try InlineDetourGuest()
        test.guest.kernel.setEntry(of: test.entry.rawValue, to: 0)
        #expect { try test.detour.arm() } throws: {
            guard case .memory(let error, _)? = $0 as? InlineDetourError else { return false }
            return error.isNotPresent
        }
    }

    @Test("Code that somebody else changed is not put back over; a page read from its file again needs nothing")
    func changed() throws {
        let test = try InlineDetourGuest()
        let plan = try test.detour.plan()
        try test.detour.arm()
        test.guest.kernel.write(UInt8(0xcc), at: test.entry.rawValue)
        let before = test.snapshot
        #expect { try test.detour.disarm() } throws: {
            if case .entryChanged? = $0 as? InlineDetourError { true } else { false }
        }
        #expect(test.snapshot == before && test.detour.armed != nil)
        test.guest.kernel.write(plan.original, at: test.entry.rawValue)
        #expect(try test.detour.disarm() == .clean)
        #expect(test.detour.armed == nil && test.bytes(test.entry, 6) == plan.original)
    }

    @Test("A handler that somebody else changed stays, and can be tried again")
    func changedHandler() throws {
        let test = try InlineDetourGuest()
        try test.detour.arm()
        let handler = try #require(test.detour.handler).handler
        test.guest.kernel.write(UInt8(0xcc), at: test.slack.address.rawValue)
        #expect(try test.detour.disarm() == .handlerKept("somebody else changed it"))
        #expect(test.detour.armed == nil && test.detour.handler != nil)
        test.guest.kernel.write(handler, at: test.slack.address.rawValue)
        #expect(try test.detour.disarm() == .clean)
    }

    @Test("After a reset there is nothing to take out")
    func reset() throws {
        let test = try InlineDetourGuest()
        try test.detour.arm()
        test.detour.forgetEverything()
        test.machine.clearLog()
        #expect(try test.detour.disarm() == .clean)
        #expect(test.machine.actions.isEmpty)
    }
}
