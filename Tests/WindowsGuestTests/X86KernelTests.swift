import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

/// A 32-bit Windows 7 and what discovery makes of it.
struct X86Guest {
    let guest: ShapedKernel

    init(pae: Bool = true, _ change: (inout KernelShape) -> Void = { _ in }) {
        var shape = KernelShape.windows7x86(pae: pae)
        change(&shape)
        guest = ShapedKernel(shape)
    }

    func locate() throws(DiscoveryError) -> WindowsKernel {
        try KernelLocator(physical: guest.ram.physical).locate(among: guest.processorTables)
    }

    func list() throws -> ProcessList {
        let kernel = try locate()
        return ProcessList(of: kernel, offsets: try KernelOffsets(of: kernel))
    }

    func powerFunction() throws(DiscoveryError) -> PowerFunction {
        let kernel = try locate()
        let list = ProcessList(of: kernel, offsets: try KernelOffsets(of: kernel))
        return try PowerFunctionLocator(of: kernel, processes: try list.processes()).locate()
    }
}

@Suite("A 32-bit kernel") struct X86KernelTests {
    @Test("A kernel without and with PAE is found from the interrupt table of 8-byte gates", arguments: [false, true])
    func found(pae: Bool) throws {
        let guest = X86Guest(pae: pae)
        let kernel = try guest.locate()
        #expect(kernel.base == GuestVirtualAddress(0x8281_0000) && kernel.build == 7601)
        #expect(kernel.architecture == .x86 && kernel.image.architecture == .x86)
        #expect(kernel.exports.moduleName == (pae ? "ntkrnlpa.exe" : "ntoskrnl.exe"))
        #expect(kernel.systemCR3 == guest.guest.tables.root)
        #expect(kernel.initialSystemProcess == GuestVirtualAddress(guest.guest.processes[0].object))
        #expect(KernelModules(of: kernel).modules().map(\.image.base) == [kernel.base])
    }

    @Test("The offsets of Windows 7 SP1 x86 are derived from its accessors", arguments: [false, true])
    func offsets(pae: Bool) throws {
        let offsets = try KernelOffsets(of: try X86Guest(pae: pae).locate())
        #expect(offsets.currentThread == 0x124 && offsets.previousMode == 0x13a)
        #expect(offsets.attachedProcess == 0x50 && offsets.threadProcess == 0x150 && offsets.threadID == 0x230)
        #expect(offsets.uniqueProcessID == 0xb4 && offsets.activeProcessLinks == 0xb8)
        #expect(offsets.imageFileName == 0x16c && offsets.peb == 0x1a8 && offsets.directoryTableBase == 0x18)
    }

    @Test("Processes, and the thread that a processor's region names, are read with 32-bit words")
    func processes() throws {
        let guest = X86Guest().guest
        let list = try X86Guest().list()
        let processes = try list.processes()
        #expect(processes.map(\.imageName) == ["System", "smss.exe", "csrss.exe"])
        #expect(processes.map { $0.peb?.rawValue } == [nil, 0x7ffd_0000, 0x7ffd_0000])
        let thread = try list.currentThread(processorRegion: guest.processorRegion)
        #expect(thread == GuestVirtualAddress(guest.thread))
        #expect(try list.callerProcess(ofThread: thread).imageName == "smss.exe")
        #expect(try list.attachedProcess(ofThread: thread).imageName == "System")
        #expect(try list.threadID(of: thread) == 0x1234 && list.previousMode(ofThread: thread) == .user)
    }

    @Test("The region of a vCPU's processor is in FS")
    func processorRegion() {
        var registers = Registers()
        registers.fsBase = 0x8273_7c00
        registers.gsBase = 1
        #expect(registers.processorRegion == 0x8273_7c00)
    }

    @Test("The exported table is read, its dispatcher found from INT 2Eh's handler, and confirmed by exports")
    func serviceTable() throws {
        let guest = X86Guest()
        let kernel = try guest.locate()
        let table = try ServiceTable(of: kernel)
        #expect(table.source == .export && table.encoding == .absolute && table.limit == 0x191)
        #expect(table.base == guest.guest.guestAddress("KiServiceTable"))
        #expect(table.descriptor == guest.guest.guestAddress("KeServiceDescriptorTable"))
        #expect(table.serviceEntry == guest.guest.guestAddress("KiSystemService"))
        #expect(table.dispatcher == guest.guest.guestAddress("KiSystemServiceRepeat"))
        #expect(table.confirmations == ["NtClose", "NtQuerySystemInformation"] && table.contradictions.isEmpty)
        #expect(try table.function(0x161, in: kernel) == guest.guest.guestAddress("NtSetSystemPowerState"))
        #expect(
            try table.kernelStubs(number: 0x161, in: kernel) == [guest.guest.guestAddress("ZwSetSystemPowerState")])
        // Arguments that are no whole words.
        guest.guest.tables.write(UInt8(3), at: guest.guest.address("KiArgumentTable") + 7)
        #expect(throws: DiscoveryError.self) { try ServiceTable(of: kernel) }
    }

    @Test("Where nothing is exported and no code leads there, the table is found by what it holds")
    func tableByShape() throws {
        let guest = X86Guest { $0.tableSource = .shape }
        let table = try ServiceTable(of: try guest.locate())
        #expect(table.source == .shape && table.base == guest.guest.guestAddress("KiServiceTable"))
        #expect(table.descriptor == guest.guest.guestAddress("KeServiceDescriptorTable"))
        #expect(table.shadowDescriptor == guest.guest.guestAddress("KeServiceDescriptorTableShadow"))
    }

    @Test(
        "The power function is found whatever way ntdll makes system calls",
        arguments: [.sharedPointer, .sharedCode, .interrupt, .nearEntry, .function] as [KernelShape.StubShape],
        [false, true])
    func powerFunction(stub: KernelShape.StubShape, pae: Bool) throws {
        let guest = X86Guest(pae: pae) { $0.stub = stub }
        let function = try guest.powerFunction()
        #expect(function.address == guest.guest.powerFunction && function.number == 0x161)
        #expect(function.stub == guest.guest.guestAddress("ZwSetSystemPowerState"))
    }

    @Test(
        "A stub that is hooked, or none, is an error",
        arguments: [
            [0xe9, 0, 0, 0, 0], [0xb8, 0x61, 1, 0, 0, 0xc3], [0xb8, 0x61, 1, 0, 0, 0xff, 0x12, 0xc3],
            [0xb8, 0x61, 1, 0, 0, 0xe8, 0x40, 0, 0, 0], [0xb8, 0x61, 1, 0, 0, 0xcd, 0x2e],
            [0xb8, 0x61, 1, 0, 0, 0x8d, 0x54, 0x24, 4, 0xcd, 0x2f], [0xba, 0, 3, 0xfe, 0x7f, 0xff, 0xd2],
            [0xb8, 0x61, 1, 0, 0, 0x64, 0xff, 0x15, 0xc4, 0, 0, 0], [0xb8, 0x61, 1, 0, 0, 0x0f, 0x34],
        ] as [[UInt8]])
    func hooked(code: [UInt8]) throws {
        let guest = X86Guest()
        for process in guest.guest.processes.dropFirst() {
            process.tables.write(code, at: guest.guest.ntdllAddress("NtSetSystemPowerState"))
        }
        let error = try #require(throws: DiscoveryError.self) { try guest.powerFunction() }
        guard case .unexpectedCode("NtSetSystemPowerState", _, _) = error else {
            Issue.record("\(error)")
            return
        }
    }

    @Test("The function's re-entry through its Zw stub is proved, another service's is not", arguments: [false, true])
    func reentry(pae: Bool) throws {
        let guest = X86Guest(pae: pae)
        let kernel = try guest.locate()
        let proof = ReentryProof(of: kernel, serviceTable: try ServiceTable(of: kernel))
        #expect(
            proof.examine(guest.guest.powerFunction, number: 0x161)
                == .proved(path: [guest.guest.powerFunction, guest.guest.guestAddress("ZwSetSystemPowerState")]))
        #expect(proof.examine(guest.guest.powerFunction, number: 0x32) == .notFound(unfollowedBranches: 0))
    }

    @Test("KeBugCheck2 is the callee that both bug check functions push the code for")
    func bugCheck() throws {
        let guest = X86Guest { $0.bugChecks = BugCheckCode.windows32 }
        let found = try BugCheckFunction(of: try guest.locate())
        #expect(found.address == guest.guest.guestAddress("KeBugCheck2") && found.foundBy == [.commonCallee])
        // One that pushes something else on top is not it.
        let other = X86Guest {
            $0.bugChecks = { code in
                BugCheckCode.emitFunctions(["KeBugCheck2"], &code)
                for name in ["KeBugCheckEx", "KeBugCheck"] {
                    code.function(name)
                    // push ebp; mov ebp, esp; push [ebp+8]; push 0
                    code.emit(0x55, 0x8b, 0xec, 0xff, 0x75, 0x08, 0x6a, 0x00)
                    code.call("KeBugCheck2")
                    code.emit(0xcc)
                }
            }
        }
        #expect(try BugCheckFunction(of: try other.locate()).name == "KeBugCheckEx")
    }

    @Test("Slack and the shared data are found where 32-bit kernels have them")
    func slackAndClock() throws {
        let guest = X86Guest()
        let kernel = try guest.locate()
        #expect(try KernelSlack.find(64, in: kernel).section == ".text")
        guest.guest.tables.write(UInt32(7), at: 0xffdf_0000 + 8)
        #expect(try SharedUserData(of: kernel).interruptTime() == 7)
        #expect(SharedUserData(of: kernel).address == GuestVirtualAddress(0xffdf_0000))
    }

    @Test("The modules of a 32-bit process are read from its loader's list")
    func modules() throws {
        let guest = X86Guest()
        let process = try guest.list().processes()[1]
        let modules = UserModules(of: process, kernel: try guest.locate()).modules()
        #expect(modules.map(\.name) == ["program.exe", "ntdll.dll"])
        #expect(modules.last?.base == GuestVirtualAddress(0x7712_0000))
    }

    @Test("A kernel in the last quarter, where programs have three, is found")
    func threeQuarters() throws {
        let guest = X86Guest { $0.base = 0xe081_0000 }
        #expect(try guest.locate().base == GuestVirtualAddress(0xe081_0000))
    }
}

@Suite("A 32-bit system that is no Windows, or not yet") struct X86OtherSystemTests {
    @Test("An image of another name is refused, and firmware in 32-bit mode is told from a kernel")
    func otherSystems() throws {
        let other = X86Guest { $0.moduleName = "reactos.exe" }
        let error = try #require(throws: DiscoveryError.self) { try other.locate() }
        #expect({ if case .noKernel = error { true } else { false } }())
        let firmware = X86Guest()
        for vector in 0..<32 as Range<UInt64> {
            firmware.guest.tables.write(UInt64(0x8e00_0008_1000), at: firmware.guest.places.idt + vector * 8)
        }
        #expect(try #require(throws: DiscoveryError.self) { try firmware.locate() }.canBeRetried)
    }

    @Test("Handlers that no image holds, and no INT 2Eh for programs: another 32-bit system, for good")
    func foreign() throws {
        let guest = X86Guest { $0.damage = .headerAbsent }
        // A Windows of which nothing more can be seen now.
        #expect(try #require(throws: DiscoveryError.self) { try guest.locate() }.canBeRetried)
        guest.guest.tables.write(UInt64(0), at: guest.guest.places.idt + 0x2e * 8)
        let error = try #require(throws: DiscoveryError.self) { try guest.locate() }
        #expect({ if case .noKernel = error { true } else { false } }())
    }

    @Test(
        "Gates of 16 bits, task gates, absent ones and those with bits that must be zero are none",
        arguments: [
            0x8281_0e00_0008_1234, 0x8281_8600_0008_1234, 0x8281_8500_0008_1234, 0x8281_9e00_0008_1234,
            0x8281_8e20_0008_1234, 0x8281_8e00_0000_1234,
        ] as [UInt64])
    func gates(gate: UInt64) throws {
        #expect(InterruptGate(protectedMode: gate) == nil)
        let good = try #require(InterruptGate(protectedMode: 0x8281_ef00_0008_1234))
        #expect(good.handler == GuestVirtualAddress(0x8281_1234) && good.kind == .trap && good.privilegeLevel == 3)
    }
}

@Suite("Pages that a 32-bit Windows keeps") struct X86NotPresentPageTests {
    @Test("Entries without PAE: the page's number in bits 31 to 12, a prototype as a distance in the pool")
    func withoutPAE() {
        let mode = PagingMode.legacy32(largePages: true)
        #expect(NotPresentPage(entry: 0, mode: mode) == .unmapped)
        #expect(NotPresentPage(entry: 0x1234_58a0, mode: mode) == .transition(GuestPhysicalAddress(0x1234_5000)))
        #expect(NotPresentPage(entry: 0x0432_1084, mode: mode) == .pagefile(number: 2, offset: 0x4321))
        #expect(NotPresentPage(entry: 0x80, mode: mode) == .demandZero)
        #expect(NotPresentPage(entry: 0x0000_1c06, mode: mode) == .prototypeInPool(offset: 0x60c))
    }

    @Test("Entries with PAE: a prototype's address in the upper half")
    func withPAE() {
        #expect(NotPresentPage(entry: 0xe123_4568_0000_0400, mode: .pae) == .prototype(.init(0xe123_4568)))
        #expect(NotPresentPage(entry: 0xffff_ffff_0000_0480, mode: .pae) == .addressDescriptor)
        #expect(NotPresentPage(entry: 0x0000_0001_1234_58a0, mode: .pae) == .transition(.init(0x1_1234_5000)))
        #expect(NotPresentPage(entry: 0x4321_0000_0080, mode: .pae) == .pagefile(number: 0, offset: 0x4321))
    }
}
