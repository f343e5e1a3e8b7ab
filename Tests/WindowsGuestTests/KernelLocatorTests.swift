import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

@Suite("Finding the kernel") struct KernelLocatorTests {
    @Test("A kernel is found from the interrupt table, with its build, base and System process")
    func found() throws {
        let guest = SyntheticKernel()
        let kernel = try guest.locate()
        #expect(kernel.base == GuestVirtualAddress(guest.base))
        #expect(kernel.build == 19041)
        #expect(kernel.initialSystemProcess == GuestVirtualAddress(guest.processes[0].object))
        #expect(kernel.systemCR3 & ~0xfff == guest.cr3)
        #expect(kernel.image.sections.map(\.name) == [".text", "PAGELK", ".rdata", ".data", "INIT"])
        #expect(try kernel.export("KeBugCheckEx") == guest.guestAddress("KeBugCheckEx"))
        #expect(kernel.identity.timeDateStamp == 0x5f3a_9c21 && kernel.identity.imageSize == 0xb000)
    }

    @Test("The kernel is found from another process's address space, too, and read through the System process's")
    func otherProcess() throws {
        let guest = SyntheticKernel()
        let tables = guest.processorTables(cr3: guest.processes[2].tables.root)
        let kernel = try KernelLocator(physical: guest.ram.physical).locate(tables)
        #expect(kernel.systemCR3 & ~0xfff == guest.cr3)
    }

    @Test("The page before code may be absent: the search goes on before it")
    func absentPageBetween() throws {
        let guest = SyntheticKernel()
        guest.setEntry(of: guest.base + 0x1000 + 0, to: guest.entry(of: guest.base + 0x1000))
        // Handlers lie in the first page of code; the header's page is present. Take the kernel's INIT away.
        guest.setEntry(of: guest.base + 0x9000, to: 0)
        #expect(throws: Never.self) { try guest.locate() }
    }

    @Test("Firmware is told from a kernel: paging off, not in long mode, handlers in the lower half")
    func firmware() throws {
        let guest = SyntheticKernel()
        let locator = KernelLocator(physical: guest.ram.physical)
        var tables = guest.processorTables
        tables.control.cr0 = 0x10
        #expect(throws: DiscoveryError.pagingOff) { try locator.locate(tables) }
        tables = guest.processorTables
        tables.control.efer = 0
        #expect(throws: DiscoveryError.notLongMode) { try locator.locate(tables) }
        for vector in 0..<32 {
            guest.write(UInt64(0x8e00) << 32 | 0x38 << 16 | 0x1000, at: guest.idtBase + UInt64(vector) * 16)
            guest.write(UInt64(0), at: guest.idtBase + UInt64(vector) * 16 + 8)
        }
        let error = try #require(throws: DiscoveryError.self) { try guest.locate() }
        #expect({ if case .stillBooting = error { true } else { false } }())
        #expect(error.canBeRetried)
    }

    @Test("An interrupt table without usable gates is that of a guest that still boots")
    func noGates() throws {
        let guest = SyntheticKernel()
        guest.write([UInt8](repeating: 0, count: 512), at: guest.idtBase)
        let error = try #require(throws: DiscoveryError.self) { try guest.locate() }
        #expect({ if case .stillBooting = error { true } else { false } }())
        var tables = guest.processorTables
        tables.idtLimit = 0
        #expect(throws: DiscoveryError.self) { try KernelLocator(physical: guest.ram.physical).locate(tables) }
    }

    @Test("A Linux kernel is no Windows kernel, and waiting does not make it one")
    func linux() throws {
        let guest = SyntheticKernel { $0.base = 0xffff_ffff_8100_0000 }
        let error = try #require(throws: DiscoveryError.self) { try guest.locate() }
        #expect({ if case .noKernel = error { true } else { false } }())
        #expect(!error.canBeRetried)
    }

    @Test("An image of another name is no Windows kernel")
    func otherName() throws {
        let guest = SyntheticKernel { $0.moduleName = "reactos.exe" }
        let error = try #require(throws: DiscoveryError.self) { try guest.locate() }
        #expect(error == .noKernel("the image at \(GuestVirtualAddress(guest.base)) calls itself \"reactos.exe\""))
    }

    @Test("A kernel whose header is not mapped where the vCPU was is not visible from there: worth a retry")
    func isolated() throws {
        let guest = SyntheticKernel()
        // What a user-mode address space under page-table isolation maps: the table and the handlers' page.
        let shadow = PageTableBuilder(ram: guest.ram)
        for page in [guest.idtBase, guest.base + 0x1000] {
            shadow.map(page, to: guest.entry(of: page) & 0xf_ffff_f000, .kernelCode)
        }
        let error = try #require(throws: DiscoveryError.self) {
            try KernelLocator(physical: guest.ram.physical).locate(guest.processorTables(cr3: shadow.root))
        }
        #expect({ if case .notVisible = error { true } else { false } }())
        #expect(error.canBeRetried)
        // With another vCPU in the kernel it is found.
        let both = [guest.processorTables(cr3: shadow.root), guest.processorTables]
        #expect(throws: Never.self) { try KernelLocator(physical: guest.ram.physical).locate(among: both) }
    }

    @Test("Of several vCPUs that lead nowhere, the one that tells most gives the reason")
    func severalErrors() throws {
        let guest = SyntheticKernel { $0.moduleName = "x.exe" }
        var waiting = guest.processorTables
        waiting.control.cr0 = 0x10
        let error = try #require(throws: DiscoveryError.self) {
            try KernelLocator(physical: guest.ram.physical).locate(among: [waiting, guest.processorTables, waiting])
        }
        #expect(!error.canBeRetried)
    }

    @Test("Before the System process exists the guest is still booting")
    func noSystemProcess() throws {
        let guest = SyntheticKernel()
        guest.write(UInt64(0), at: guest.address("PsInitialSystemProcess"))
        #expect(throws: DiscoveryError.stillBooting("there is no System process yet")) { try guest.locate() }
    }

    @Test("Page tables of the System process that map something else there are an error")
    func wrongTables() throws {
        let guest = SyntheticKernel()
        guest.write(guest.ram.allocate(), at: guest.processes[0].object + 0x28)
        let error = try #require(throws: DiscoveryError.self) { try guest.locate() }
        #expect({ if case .malformed = error { true } else { false } }())
    }

    @Test("One vector taken by another program does not hide the kernel; most of them do")
    func takenVectors() throws {
        let guest = SyntheticKernel()
        let elsewhere: UInt64 = 0xffff_f806_5555_0000
        func take(_ vector: UInt64) {
            let low = elsewhere & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (elsewhere >> 16 & 0xffff) << 48
            guest.write(low, at: guest.idtBase + vector * 16)
        }
        take(3)
        #expect(throws: Never.self) { try guest.locate() }
        for vector in [0, 1, 6, 13] as [UInt64] { take(vector) }
        #expect(throws: DiscoveryError.self) { try guest.locate() }
    }

    @Test(
        "Garbage anywhere in what discovery reads is an error or a find, never a trap",
        arguments: 1...6 as ClosedRange<UInt64>)
    func fuzz(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        for _ in 0..<40 {
            let guest = SyntheticKernel()
            defer { guest.ram.unmap() }
            let pages = [
                guest.base, guest.base + 0x1000, guest.base + 0x4000, guest.base + 0x6000, guest.base + 0x7000,
                guest.base + 0x8000, guest.idtBase, guest.processes[0].object & ~0xfff,
                guest.processes[1].object & ~0xfff,
            ]
            for _ in 0..<Int.random(in: 1...64, using: &random) {
                let page = pages.randomElement(using: &random)!
                // Mostly the first half kilobyte: headers, directories, the first objects.
                let offset = UInt64.random(in: 0..<(Bool.random(using: &random) ? 0x200 : 0xff8), using: &random)
                switch random.next() & 3 {
                case 0: guest.write(random.next(), at: page + offset)
                case 1: guest.write(UInt8.random(in: 0...255, using: &random), at: page + offset)
                case 2: guest.write(UInt32.max, at: page + offset)
                default: guest.write(UInt32(truncatingIfNeeded: random.next() & 0xffff), at: page + offset)
                }
            }
            _ = try? guest.locatePowerFunction()
            if let kernel = try? guest.locate(), let table = try? ServiceTable(of: kernel) {
                _ = ReentryProof(of: kernel, serviceTable: table).examine(
                    guest.guestAddress("NtSetSystemPowerState"), number: 0x1ab)
                _ = try? KernelSlack.find(64, in: kernel)
            }
        }
    }
}

@Suite("Interrupt gates") struct InterruptGateTests {
    static let good: UInt64 = 0x1234_8e00_0010_5678

    @Test("A gate's handler is put together from its three parts")
    func handler() throws {
        let gate = try #require(InterruptGate(low: Self.good, high: 0xffff_f800))
        #expect(gate.handler == GuestVirtualAddress(0xffff_f800_1234_5678))
        #expect(gate.kind == .interrupt && gate.selector == 0x10 && gate.privilegeLevel == 0)
        #expect(InterruptGate(low: 0x1234_ef00_0010_5678, high: 0)?.privilegeLevel == 3)
        #expect(InterruptGate(low: 0x1234_ef00_0010_5678, high: 0)?.kind == .trap)
    }

    @Test(
        "Absent, wrongly typed, reserved-bit and selector-less gates are none",
        arguments: [
            good & ~(1 << 47), good & ~(0xf << 40) | 0xc << 40, good | 1 << 44, good & ~(0xffff << 16), good | 1 << 36,
            good & ~(0xf << 40) | 0x5 << 40,
        ])
    func unusable(low: UInt64) {
        #expect(InterruptGate(low: low, high: 0xffff_f800) == nil)
        #expect(InterruptGate(low: Self.good, high: 0xffff_f800) != nil)
    }
}
