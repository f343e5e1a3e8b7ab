import GuestMemory
import TestSupport
import Testing
import WindowsGuest

@Suite("Proof of re-entry") struct ReentryProofTests {
    func examine(_ guest: SyntheticKernel, number: UInt32 = 0x1ab) throws -> ReentryProof.Verdict {
        let kernel = try guest.locate()
        return ReentryProof(of: kernel, serviceTable: try ServiceTable(of: kernel))
            .examine(guest.guestAddress("NtSetSystemPowerState"), number: number)
    }

    @Test("A call of its own stub is found in the function and in callees to depth three", arguments: 0...3)
    func found(depth: Int) throws {
        let guest = SyntheticKernel { $0.reentryDepth = depth }
        guard case .proved(let path) = try examine(guest) else {
            Issue.record("not proved")
            return
        }
        let callees = depth == 0 ? [] : (1...depth).map { guest.guestAddress("PopReenter\($0)") }
        #expect(
            path == [guest.guestAddress("NtSetSystemPowerState")] + callees
                + [guest.guestAddress("ZwSetSystemPowerState")])
    }

    @Test("A call four callees deep is not looked for")
    func tooDeep() throws {
        #expect(try examine(SyntheticKernel { $0.reentryDepth = 4 }) == .notFound(unfollowedBranches: 1))
    }

    @Test("A jump to the stub counts as much as a call, directly and in a callee", arguments: [0, 1])
    func tailJump(depth: Int) throws {
        let guest = SyntheticKernel {
            $0.reentryDepth = depth
            $0.reentryByTailJump = true
        }
        guard case .proved = try examine(guest) else {
            Issue.record("not proved")
            return
        }
    }

    @Test("A function that never re-enters is not proved, and what could not be followed is counted")
    func none() throws {
        let guest = SyntheticKernel { $0.reentryDepth = nil }
        #expect(try examine(guest) == .notFound(unfollowedBranches: 1))
    }

    @Test("The stub of another service is no re-entry")
    func otherNumber() throws {
        #expect(try examine(SyntheticKernel { $0.reentryDepth = 0 }, number: 0xf) == .notFound(unfollowedBranches: 1))
    }

    @Test("A function that carries the number, but jumps elsewhere than the kernel's stubs, is no stub")
    func falseStub() throws {
        let guest = SyntheticKernel { $0.reentryDepth = 0 }
        // jmp KiServiceInternal becomes a jump to KiServiceLinkage.
        let jump = guest.address("ZwSetSystemPowerState") + 25
        let distance = guest.address("KiServiceLinkage") &- (jump + 5)
        guest.write(UInt32(truncatingIfNeeded: distance), at: jump + 1)
        #expect(try examine(guest) == .notFound(unfollowedBranches: 1))
    }

    @Test("Code that is not resident leaves it undecided, not disproved")
    func absent() throws {
        let guest = SyntheticKernel { $0.reentryDepth = 1 }
        let kernel = try guest.locate()
        let table = try ServiceTable(of: kernel)
        guest.setEntry(of: guest.address("NtSetSystemPowerState"), to: 0x4321_0000_0080)
        let verdict = ReentryProof(of: kernel, serviceTable: table)
            .examine(guest.guestAddress("NtSetSystemPowerState"), number: 0x1ab)
        guard case .undecided = verdict else {
            Issue.record("\(verdict)")
            return
        }
    }

    @Test("A loop in the code ends")
    func loop() throws {
        let guest = SyntheticKernel { $0.reentryDepth = nil }
        guest.write([0xeb, 0xfe], at: guest.address("NtSetSystemPowerState"))
        #expect(try examine(guest) == .notFound(unfollowedBranches: 0))
        // And a function that calls itself.
        guest.write([0xe8, 0xfb, 0xff, 0xff, 0xff, 0xc3], at: guest.address("NtSetSystemPowerState"))
        #expect(try examine(guest) == .notFound(unfollowedBranches: 0))
    }
}

@Suite("Slack space") struct KernelSlackTests {
    @Test("Zeroes behind a resident code section are found, 16-byte aligned, the same place each time")
    func found() throws {
        let guest = SyntheticKernel()
        let kernel = try guest.locate()
        let slack = try KernelSlack.find(256, in: kernel)
        let text = try #require(kernel.image.section(named: ".text"))
        #expect(slack.section == ".text" && slack.address.rawValue & 15 == 0)
        let end = kernel.base.rawValue + UInt64(text.rva + text.virtualSize)
        #expect(slack.address.rawValue >= end && slack.address.rawValue < end + 16)
        #expect(try KernelSlack.find(256, in: kernel) == slack)
    }

    @Test("Pageable and discardable sections are never used, nor bytes that are not zero")
    func refused() throws {
        let guest = SyntheticKernel()
        let kernel = try guest.locate()
        let slack = try KernelSlack.find(64, in: kernel)
        guest.write(UInt8(1), at: slack.address.rawValue + 10)
        let error = try #require(throws: DiscoveryError.self) { try KernelSlack.find(64, in: kernel) }
        #expect(error == .notFound("64 unused zero bytes at the end of a code section"))
        guest.write(UInt8(0), at: slack.address.rawValue + 10)
        guest.write(UInt8(1), at: slack.address.rawValue + 64)
        #expect(try KernelSlack.find(64, in: kernel).available == 64)
    }

    @Test("More than a page, nothing, and less than there is are handled")
    func sizes() throws {
        let kernel = try SyntheticKernel().locate()
        for count in [0, -1, 4097, Int.max, Int.min] {
            #expect(throws: DiscoveryError.self) { try KernelSlack.find(count, in: kernel) }
        }
        #expect(throws: Never.self) { try KernelSlack.find(1, in: kernel) }
    }

    @Test("A page that is absent now is worth a retry; one that may not be executed is no place for code")
    func absent() throws {
        let guest = SyntheticKernel()
        let kernel = try guest.locate()
        let slack = try KernelSlack.find(64, in: kernel)
        let entry = guest.entry(of: slack.address.rawValue)
        guest.setEntry(of: slack.address.rawValue, to: 0)
        #expect(try #require(throws: DiscoveryError.self) { try KernelSlack.find(64, in: kernel) }.canBeRetried)
        guest.setEntry(of: slack.address.rawValue, to: entry | 1 << 63)
        #expect(throws: DiscoveryError.self) { try KernelSlack.find(64, in: kernel) }
    }
}

@Suite("Shared user data") struct SharedUserDataTests {
    let guest = SyntheticKernel()
    let page: UInt64 = 0xffff_f780_0000_0000

    @Test("The interrupt time is put together from its parts, with and without its bias")
    func interruptTime() throws {
        guest.write(UInt32(0x8765_4321), at: page + 8)
        guest.write(UInt32(2), at: page + 12)
        guest.write(UInt32(2), at: page + 16)
        guest.write(UInt64(0x1_0000_0000), at: page + 0x3b0)
        let data = SharedUserData(of: try guest.locate())
        #expect(try data.interruptTime() == 0x2_8765_4321)
        #expect(try data.unbiasedInterruptTime() == 0x1_8765_4321)
    }

    @Test("Halves that never fit together are an error, not an endless loop")
    func torn() throws {
        guest.write(UInt32(2), at: page + 12)
        guest.write(UInt32(3), at: page + 16)
        #expect(throws: DiscoveryError.self) { try SharedUserData(of: try guest.locate()).interruptTime() }
    }
}
