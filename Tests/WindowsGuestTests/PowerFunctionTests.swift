import GuestMemory
import TestSupport
import Testing
import WindowsGuest

@Suite("Finding NtSetSystemPowerState") struct PowerFunctionTests {
    /// One pattern for the synthetic kernel's build.
    static func pattern(
        _ guest: SyntheticKernel, first: Int = 19041, last: Int = 19041, hint: String = "PAGELK"
    ) throws -> [FunctionPatterns] {
        let row = guest.options.powerFunctionPrologue.map { "0x" + String($0, radix: 16) }.joined(separator: ", ")
        let lines = [
            "---", "!intro_update_win_function", "name: NtSetSystemPowerState", "guest64: True", "patterns:",
            "    -", "        !intro_update_win_pattern", "        section_hint: \(hint)", "        min_ver: \(first)",
            "        max_ver: \(last)", "        pattern: !code_pattern", "            code:",
            "                - [\(row)]",
        ]
        return [try FunctionPatterns(yaml: lines.joined(separator: "\n"), source: "test")]
    }

    @Test("ntdll's number and the service table lead to it, and that there is one way only is said")
    func serviceTable() throws {
        let guest = SyntheticKernel()
        let function = try guest.locatePowerFunction()
        #expect(function.address == guest.guestAddress("NtSetSystemPowerState"))
        #expect(function.foundBy == [.serviceTable] && !function.isConfirmed)
        #expect(function.number == 0x1ab)
        #expect(function.stub == guest.guestAddress("ZwSetSystemPowerState"))
        #expect(function.notes.contains { $0.contains("no second way") })
        #expect(function.notes.contains { $0.contains("smss.exe") && $0.contains("csrss.exe") })
    }

    @Test("A pattern is the second way")
    func bothWays() throws {
        let guest = SyntheticKernel()
        let function = try guest.locatePowerFunction(patterns: try Self.pattern(guest))
        #expect(function.foundBy == [.serviceTable, .pattern] && function.isConfirmed)
        // Also where the hint names a section that is not there.
        #expect(try guest.locatePowerFunction(patterns: try Self.pattern(guest, hint: "PAGE")).isConfirmed)
    }

    @Test("A pattern for other builds is not used", arguments: [(19042, 20000), (7600, 19040)])
    func otherBuilds(first: Int, last: Int) throws {
        let guest = SyntheticKernel()
        let function = try guest.locatePowerFunction(patterns: try Self.pattern(guest, first: first, last: last))
        #expect(function.foundBy == [.serviceTable])
    }

    @Test("A pattern that matches twice is ambiguous, and both places are named")
    func ambiguous() throws {
        let guest = SyntheticKernel { $0.duplicatePrologue = true }
        let patterns = try Self.pattern(guest)
        let error = try #require(throws: DiscoveryError.self) { try guest.locatePowerFunction(patterns: patterns) }
        guard case .ambiguous(_, let candidates) = error else {
            Issue.record("\(error)")
            return
        }
        #expect(candidates.count == 2 && candidates.contains(guest.guestAddress("NtSetSystemPowerState")))
    }

    @Test("A supplied pattern that leads elsewhere than the service table counts, and both places are named")
    func disagreement() throws {
        let guest = SyntheticKernel()
        let patterns = try Self.pattern(guest)
        // The table now leads to a function of the same kind.
        let entry = (guest.symbols["PopUnrelated"]! &- 0x6000) << 4
        guest.write(entry, at: guest.address("KiServiceTable") + 0x1ab * 4)
        let function = try guest.locatePowerFunction(patterns: patterns)
        #expect(function.address == guest.guestAddress("NtSetSystemPowerState") && function.foundBy == [.pattern])
        #expect(function.number == nil)
        let warning = try #require(function.notes.first { $0.hasPrefix("WARNING") })
        for name in ["PopUnrelated", "NtSetSystemPowerState"] {
            #expect(warning.contains(guest.guestAddress(name).description))
        }
    }

    @Test("With ntdll hooked everywhere a pattern alone finds it, and says why it is alone; without one it is an error")
    func hookedStub() throws {
        let guest = SyntheticKernel()
        let stub = guest.ntdllAddress("NtSetSystemPowerState")
        guest.processes[1].tables.write([0xe9, 0, 0, 0, 0], at: stub)
        let function = try guest.locatePowerFunction(patterns: try Self.pattern(guest))
        #expect(function.foundBy == [.pattern] && function.number == nil)
        #expect(function.notes.contains { $0.contains("hooked") })
        let error = try #require(throws: DiscoveryError.self) { try guest.locatePowerFunction() }
        guard case .unexpectedCode("NtSetSystemPowerState", _, _) = error else {
            Issue.record("\(error)")
            return
        }
    }

    @Test("A process with its own, lying ntdll makes the number a disagreement")
    func forgedModule() throws {
        let guest = SyntheticKernel()
        let stub = guest.ntdllAddress("NtSetSystemPowerState")
        let own = guest.ram.allocate()
        let page = try guest.processes[2].tables.memory.bytes(at: GuestVirtualAddress(stub & ~0xfff), count: 4096)
        guest.ram.store(page, at: own)
        guest.processes[2].tables.map(stub & ~0xfff, to: own, .userCode)
        guest.processes[2].tables.write(UInt32(0xf), at: stub + 4)
        let error = try #require(throws: DiscoveryError.self) { try guest.locatePowerFunction() }
        guard case .disagreement = error else {
            Issue.record("\(error)")
            return
        }
    }

    @Test("An ntdll that all processes see the number of another, exported service in is caught")
    func exportedService() throws {
        let guest = SyntheticKernel()
        guest.processes[1].tables.write(UInt32(0xf), at: guest.ntdllAddress("NtSetSystemPowerState") + 4)
        let error = try #require(throws: DiscoveryError.self) { try guest.locatePowerFunction() }
        #expect(error == .malformed("service 15 is the exported NtClose", at: guest.guestAddress("NtClose")))
    }

    @Test("While ntdll is in no process, or its page not resident, it is worth a retry")
    func notYet() throws {
        let guest = SyntheticKernel()
        let stub = guest.ntdllAddress("NtSetSystemPowerState")
        for process in guest.processes.dropFirst() { process.tables.unmap(stub & ~0xfff) }
        #expect(try #require(throws: DiscoveryError.self) { try guest.locatePowerFunction() }.canBeRetried)
        let young = SyntheticKernel()
        for process in young.processes.dropFirst() { process.tables.write(UInt64(0), at: process.peb + 0x18) }
        let error = try #require(throws: DiscoveryError.self) { try young.locatePowerFunction() }
        #expect(error == .stillBooting("no process has loaded ntdll yet"))
    }

    @Test("A pattern's section that is not resident makes it not yet known, not absent")
    func absentSection() throws {
        let guest = SyntheticKernel()
        let patterns = try Self.pattern(guest)
        guest.setEntry(of: guest.address("NtSetSystemPowerState"), to: 0x4321_0000_0080)
        // The table does not need the function's page.
        let function = try guest.locatePowerFunction(patterns: patterns)
        #expect(function.foundBy == [.serviceTable])
        #expect(function.notes.contains { $0.contains("not found by pattern") && $0.contains("not known yet") })
    }

    @Test("A match against the service table, while code that may match, too, is absent, is not known yet")
    func uncertainPattern() throws {
        let guest = SyntheticKernel()
        let patterns = try Self.pattern(guest, hint: "NULL")
        guest.write(guest.options.powerFunctionPrologue, at: guest.address("NtNotImplemented"))
        let page = guest.entry(of: guest.address("NtSetSystemPowerState"))
        guest.setEntry(of: guest.address("NtSetSystemPowerState"), to: 0x4321_0000_0080)
        #expect(
            try #require(throws: DiscoveryError.self) { try guest.locatePowerFunction(patterns: patterns) }.canBeRetried
        )
        // Alone it counts, and that it may not be the only one is said.
        for process in guest.processes.dropFirst() { process.tables.write(UInt64(0), at: process.peb + 0x18) }
        let function = try guest.locatePowerFunction(patterns: patterns)
        #expect(function.address == guest.guestAddress("NtNotImplemented"))
        #expect(function.notes.contains { $0.contains("may match again") })
        guest.setEntry(of: guest.address("NtSetSystemPowerState"), to: page)
        let error = try #require(throws: DiscoveryError.self) { try guest.locatePowerFunction(patterns: patterns) }
        #expect({ if case .ambiguous = error { true } else { false } }())
    }

    @Test("Loader lists that run in circles or into nothing end")
    func loaderLists() throws {
        let guest = SyntheticKernel()
        for process in guest.processes.dropFirst() {
            let first = process.peb + 0x1000
            process.tables.write(first, at: first)
        }
        #expect(throws: DiscoveryError.self) { try guest.locatePowerFunction() }
        for process in guest.processes.dropFirst() { process.tables.write(UInt64.max, at: process.peb + 0x1000) }
        #expect(throws: DiscoveryError.self) { try guest.locatePowerFunction() }
    }
}

@Suite("The service table") struct ServiceTableTests {
    @Test("An exported stub leads to it through the dispatcher, and exported services confirm it")
    func byStub() throws {
        let guest = SyntheticKernel()
        let table = try ServiceTable(of: try guest.locate())
        #expect(table.source == .stub && table.base == guest.guestAddress("KiServiceTable"))
        #expect(table.descriptor == guest.guestAddress("KeServiceDescriptorTable") && table.limit == 0x1d8)
        #expect(table.serviceEntry == guest.guestAddress("KiServiceInternal"))
        #expect(table.confirmations == ["NtClose", "NtQuerySystemInformation"] && table.contradictions.isEmpty)
        #expect(table.shadowDescriptor == guest.guestAddress("KeServiceDescriptorTableShadow"))
        #expect(table.dispatcherPages == [guest.guestAddress("KiSystemServiceStart").page])
    }

    @Test("Where the dispatcher cannot be followed, or no stub is exported, its code is searched for")
    func byScan() throws {
        let guest = SyntheticKernel { $0.opaqueDispatcher = true }
        let table = try ServiceTable(of: try guest.locate())
        #expect(table.source == .scan)
        #expect(table.shadowDescriptor == guest.guestAddress("KeServiceDescriptorTableShadow"))
        #expect(table.dispatcherPages == [guest.guestAddress("KiSystemServiceStart").page])
        let absent = SyntheticKernel { $0.withoutExports = ["ZwClose", "ZwQuerySystemInformation"] }
        // Without any exported stub nothing confirms the table.
        #expect(throws: DiscoveryError.self) { try ServiceTable(of: try absent.locate()) }
    }

    @Test("Two places that load different descriptors are ambiguous; two that load the same are not")
    func ambiguousScan() throws {
        let guest = SyntheticKernel { $0.opaqueDispatcher = true }
        let pair = guest.address("KiSystemServiceStart") + 13
        let copy = guest.address("NtSetSystemPowerState") + 0x100
        func place(_ descriptor: UInt64) {
            func distance(_ target: UInt64, _ end: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: target &- end) }
            guest.write([0x4c, 0x8d, 0x15], at: copy)
            guest.write(distance(descriptor, copy + 7), at: copy + 3)
            guest.write([0x4c, 0x8d, 0x1d, 0, 0, 0, 0, 0xf7], at: copy + 7)
        }
        _ = pair
        // The section is as long as its contents: make room in its header.
        guest.write(UInt32(0x1000), at: guest.base + 0x118 + 240 + 40 + 8)
        place(guest.address("KeServiceDescriptorTable"))
        #expect(throws: Never.self) { try ServiceTable(of: try guest.locate()) }
        place(guest.address("KeServiceDescriptorTable") + 0x40)
        let error = try #require(throws: DiscoveryError.self) { try ServiceTable(of: try guest.locate()) }
        guard case .ambiguous = error else {
            Issue.record("\(error)")
            return
        }
    }

    @Test(
        "A descriptor with an impossible base or limit is refused",
        arguments: [
            (0, UInt64(0x1234)), (0, UInt64.max & ~3), (16, 0x7f), (16, 0x1001), (16, UInt64(UInt32.max)),
        ] as [(UInt64, UInt64)])
    func impossible(offset: UInt64, value: UInt64) throws {
        let guest = SyntheticKernel()
        guest.write(value, at: guest.address("KeServiceDescriptorTable") + offset)
        let error = try #require(throws: DiscoveryError.self) { try ServiceTable(of: try guest.locate()) }
        #expect(!error.canBeRetried)
    }

    @Test("A table that is not set up yet is worth a retry")
    func early() throws {
        let guest = SyntheticKernel()
        guest.write(UInt64(0), at: guest.address("KeServiceDescriptorTable"))
        #expect(try #require(throws: DiscoveryError.self) { try ServiceTable(of: try guest.locate()) }.canBeRetried)
    }

    @Test("A table that contradicts the exports is refused; one that does so in one place says where")
    func contradicted() throws {
        let guest = SyntheticKernel()
        let entry = (guest.symbols["NtNotImplemented"]! &- 0x6000) << 4
        guest.write(entry, at: guest.address("KiServiceTable") + 0xf * 4)
        #expect(throws: DiscoveryError.self) { try ServiceTable(of: try guest.locate()) }
    }

    @Test(
        "Numbers beyond the table, and entries that lead to no code, are errors; the low four bits are no part of the address"
    )
    func entries() throws {
        let guest = SyntheticKernel()
        let kernel = try guest.locate()
        let table = try ServiceTable(of: kernel)
        for number in [0x1d8, 0x1000, UInt32.max] {
            #expect(throws: DiscoveryError.self) { try table.function(number, in: kernel) }
        }
        let slot = guest.address("KiServiceTable") + 0x1ab * 4
        let entry = (guest.symbols["NtSetSystemPowerState"]! &- 0x6000) << 4
        guest.write(entry | 0xf, at: slot)
        #expect(try table.function(0x1ab, in: kernel) == guest.guestAddress("NtSetSystemPowerState"))
        for bad in [0x2000 << 4, Int32.min, Int32.max] as [Int32] {
            guest.write(bad, at: slot)
            #expect(throws: DiscoveryError.self) { try table.function(0x1ab, in: kernel) }
        }
    }
}
