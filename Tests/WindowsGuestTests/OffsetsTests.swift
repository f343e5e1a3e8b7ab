import GuestMemory
import TestSupport
import Testing
import WindowsGuest

@Suite("Offsets from accessors") struct OffsetsTests {
    typealias Layout = SyntheticKernel.Layout

    @Test("Every offset is what the kernel's accessors say, optimised or not", arguments: [false, true])
    func derived(unoptimised: Bool) throws {
        let guest = SyntheticKernel { $0.unoptimisedAccessors = unoptimised }
        let offsets = try KernelOffsets(of: try guest.locate())
        #expect(offsets.currentThread == UInt64(Layout.currentThread))
        #expect(offsets.previousMode == UInt64(Layout.previousMode))
        #expect(offsets.attachedProcess == UInt64(Layout.attachedProcess))
        #expect(offsets.threadProcess == UInt64(Layout.threadProcess))
        #expect(offsets.threadID == UInt64(Layout.threadID))
        #expect(offsets.uniqueProcessID == UInt64(Layout.uniqueProcessID))
        #expect(offsets.activeProcessLinks == UInt64(Layout.activeProcessLinks))
        #expect(offsets.peb == UInt64(Layout.peb))
        #expect(offsets.imageFileName == UInt64(Layout.imageFileName))
        #expect(offsets.directoryTableBase == 0x28)
    }

    @Test(
        "A missing accessor is named",
        arguments: [
            "ExGetPreviousMode", "PsGetProcessId", "PsGetProcessPeb", "PsGetProcessImageFileName", "PsGetThreadId",
        ])
    func missing(name: String) throws {
        let kernel = try SyntheticKernel { $0.withoutExports = [name] }.locate()
        #expect(throws: DiscoveryError.missingExport(name)) { try KernelOffsets(of: kernel) }
    }

    @Test(
        "An accessor that branches, calls, writes, or never ends is an error with its name",
        arguments: [
            [0xe9, 0xfb, 0xff, 0xff, 0xff],  // jmp to itself
            [0xe8, 0, 0, 0, 0],  // call
            [0x74, 0x00, 0xc3],  // je
            [0x48, 0x89, 0x11],  // mov [rcx], rdx
            [0xcc], [0x06], [0xc3],
            [0x48, 0x8b, 0x81, 0xff, 0xff, 0xff, 0x7f, 0xc3],  // mov rax, [rcx+7FFFFFFFh]
            [0x48, 0x8b, 0x81, 0xf0, 0xff, 0xff, 0xff, 0xc3],  // mov rax, [rcx-16]
            [0x48, 0x8b, 0x01, 0x48, 0x8b, 0x00, 0xc3],  // two loads
            [0x48, 0x8d, 0x41, 0x10, 0xc3],  // lea rax, [rcx+16]
            [0x48, 0x8b, 0x04, 0xd1, 0xc3],  // mov rax, [rcx+rdx*8]
        ] as [[UInt8]])
    func oddlyShaped(code: [UInt8]) throws {
        let guest = SyntheticKernel()
        guest.write(code, at: guest.address("PsGetProcessId"))
        let kernel = try guest.locate()
        let error = try #require(throws: DiscoveryError.self) { try KernelOffsets(of: kernel) }
        guard case .unexpectedCode("PsGetProcessId", _, _) = error else {
            Issue.record("\(error)")
            return
        }
    }

    @Test("An accessor in a page that is not resident is not known yet")
    func absent() throws {
        let guest = SyntheticKernel()
        let kernel = try guest.locate()
        guest.setEntry(of: guest.address("PsGetProcessId"), to: 0)
        let error = try #require(throws: DiscoveryError.self) { try KernelOffsets(of: kernel) }
        #expect(error.canBeRetried)
    }

    @Test("Offsets that put the System process on no list, or give it another number, are refused")
    func contradicted() throws {
        for offset in [0x448 + 8, 0x440] as [UInt64] {
            let guest = SyntheticKernel()
            guest.write(guest.processes[1].object, at: guest.processes[0].object + offset)
            let kernel = try guest.locate()
            let error = try #require(throws: DiscoveryError.self) { try KernelOffsets(of: kernel) }
            #expect(!error.canBeRetried)
        }
    }
}

@Suite("The System process before it is listed") struct EarlySystemProcessTests {
    @Test("Without links or an identifier the guest is still booting", arguments: [0x448, 0x450, 0x440] as [UInt64])
    func early(offset: UInt64) throws {
        let guest = SyntheticKernel()
        guest.write(UInt64(0), at: guest.processes[0].object + offset)
        let kernel = try guest.locate()
        #expect(
            throws: DiscoveryError.stillBooting("the System process is not on the list of processes yet")
        ) { try KernelOffsets(of: kernel) }
    }
}

@Suite("Processes and threads") struct ProcessListTests {
    func list(_ guest: SyntheticKernel) throws -> ProcessList {
        let kernel = try guest.locate()
        return ProcessList(of: kernel, offsets: try KernelOffsets(of: kernel))
    }

    @Test("All processes are listed once, the list's head is none of them")
    func all() throws {
        let guest = SyntheticKernel()
        let processes = try list(guest).processes()
        #expect(processes.map(\.imageName) == ["System", "smss.exe", "csrss.exe"])
        #expect(processes.map(\.id) == [4, 0x104, 0x204])
        #expect(processes.map { $0.cr3 & ~0xfff } == guest.processes.map(\.tables.root))
        #expect(processes.map { $0.peb?.rawValue } == [nil, 0x2e_4000_0000, 0x2e_4000_0000])
    }

    @Test("A process without page tables is being taken down, and passed over")
    func dying() throws {
        let guest = SyntheticKernel()
        let list = try list(guest)
        guest.write(UInt64(0), at: guest.processes[1].object + 0x28)
        #expect(try list.processes().map(\.imageName) == ["System", "csrss.exe"])
    }

    @Test("A list that runs in a circle past its start, or into garbage, ends in an error")
    func broken() throws {
        let guest = SyntheticKernel()
        let list = try list(guest)
        let links = guest.processes.map { $0.object + 0x448 }
        guest.write(links[1], at: links[2])
        #expect(throws: DiscoveryError.self) { try list.processes() }
        guest.write(links[2], at: links[2])
        #expect(throws: DiscoveryError.self) { try list.processes() }
        for garbage in [0, 0x1000, 0xffff_f806_0000_0000, UInt64.max, links[0] + 4] {
            guest.write(garbage, at: links[2])
            #expect(throws: DiscoveryError.self) { try list.processes() }
        }
    }

    @Test("A thread leads to its own process, and to the one it is attached to")
    func threads() throws {
        let guest = SyntheticKernel()
        let list = try list(guest)
        let thread = try list.currentThread(processorRegion: guest.processorRegion)
        #expect(thread == GuestVirtualAddress(guest.thread))
        #expect(try list.callerProcess(ofThread: thread).imageName == "csrss.exe")
        #expect(try list.attachedProcess(ofThread: thread).imageName == "smss.exe")
        #expect(try list.threadID(of: thread) == 0x1234)
        #expect(try list.previousMode(ofThread: thread) == .user)
        guest.write(UInt8(0), at: guest.thread + 0x232)
        #expect(try list.previousMode(ofThread: thread) == .kernel)
        guest.write(UInt8(2), at: guest.thread + 0x232)
        #expect(throws: DiscoveryError.self) { try list.previousMode(ofThread: thread) }
        guest.write(UInt64(0x1234), at: guest.thread + 0x220)
        #expect(throws: DiscoveryError.self) { try list.callerProcess(ofThread: thread) }
    }
}
