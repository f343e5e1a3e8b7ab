import GuestMemory
import HypervisorInterface
import Introspection
import TestSupport
import Testing
import WindowsGuest

@testable import MemoryImage

/// A kernel in memory as an image has it: with page tables that map themselves, and no registers.
private struct KernelImage {
    let kernel: SyntheticKernel

    init(base: UInt64 = 0xffff_f806_4a20_0000, memoryBase: UInt64 = 0, mapsItself: Bool = true) {
        var options = SyntheticKernelOptions()
        options.base = base
        options.memoryBase = memoryBase
        kernel = SyntheticKernel(options)
        guard mapsItself else { return }
        for process in kernel.processes {
            kernel.ram.store(process.tables.root | 0x8000_0000_0000_0003, at: process.tables.root + 0x1ed * 8)
        }
    }

    var bytes: [UInt8] { Array(kernel.ram.bytes) }

    func found() throws -> [ProcessorTables] { try TableSearch(kernel.ram.physical).processorTables() }
}

@Suite("The search for tables") struct TableSearchTests {
    private func survey(_ bytes: [UInt8]) throws -> GuestSurvey {
        let file = try TemporaryFile(bytes)
        let image = try withExtendedLifetime(file) { try MemoryImage(path: file.path) }
        return try GuestSurvey(image, patterns: [])
    }

    @Test("In an image without registers the kernel is found, and all in it, as with the registers")
    func found() throws {
        let image = KernelImage()
        let tables = try image.found()
        #expect(tables.count == 1)
        #expect(tables.map(\.idtBase) == [GuestVirtualAddress(image.kernel.idtBase)])
        #expect(tables.map(\.isInferred) == [true])
        // One of the processes' roots is as good as another: the kernel's own tables are used in the end.
        let survey = try survey(image.bytes)
        #expect(survey.kernel.base.rawValue == image.kernel.base)
        #expect(survey.kernel.systemCR3 & ~0xfff == image.kernel.cr3)
        #expect(survey.powerFunction.address.rawValue == image.kernel.address("NtSetSystemPowerState"))
        #expect(survey.reentryIsProved)
    }

    @Test("A core without usable notes, and one whose vCPUs were all in programs, are searched too")
    func cores() throws {
        let image = KernelImage()
        // In a program under page-table isolation: a root that maps the interrupt table and nothing else.
        let shadow = PageTableBuilder(ram: image.kernel.ram)
        for page in [image.kernel.idtBase, image.kernel.base + 0x1000] {
            shadow.map(page, to: image.kernel.entry(of: page) & 0xf_ffff_f000, .kernelCode)
        }
        let inProgram = CoreBuilder.processor(cr3: shadow.root, idt: image.kernel.idtBase, codeSelector: 0x33)
        let lying = CoreBuilder.processor(cr3: image.kernel.cr3, idt: image.kernel.idtBase, size: 1 << 30)
        for notes in [[], inProgram, lying] {
            var builder = CoreBuilder()
            builder.segments = [CoreBuilder.notes(notes), CoreBuilder.load(0, image.bytes)]
            #expect(try survey(builder.build()).kernel.base.rawValue == image.kernel.base)
        }
        // What such a vCPU says is not forgotten: a kernel that it does not run is not taken for its own.
        let other = KernelImage(base: 0xffff_f802_1000_0000, memoryBase: 4 << 20, mapsItself: false)
        let otherShadow = PageTableBuilder(ram: other.kernel.ram)
        for page in [other.kernel.idtBase, other.kernel.base + 0x1000] {
            otherShadow.map(page, to: other.kernel.entry(of: page) & 0xf_ffff_f000, .kernelCode)
        }
        // Nor is one of an earlier boot taken for that of a machine in its firmware.
        for (note, isExpected) in [
            (
                CoreBuilder.processor(cr3: otherShadow.root, idt: other.kernel.idtBase, codeSelector: 0x33),
                { (error: DiscoveryError) in if case .notVisible = error { true } else { false } }
            ),
            (CoreBuilder.processor(cr0: 0x10, cr3: 0, cr4: 0, idt: 0), { $0 == .pagingOff }),
        ] {
            var builder = CoreBuilder()
            builder.segments = [CoreBuilder.notes(note), CoreBuilder.load(0, image.bytes + other.bytes)]
            let error = #expect(throws: EngineError.self) { try survey(builder.build()) }
            guard case .discovery(let problem) = error else {
                Issue.record("\(String(describing: error))")
                continue
            }
            #expect(isExpected(problem), "\(problem)")
        }
        // With registers that lead to a kernel memory is not searched: there is nothing to find in it here.
        let bare = KernelImage(mapsItself: false)
        for notes in [CoreBuilder.processor(cr3: bare.kernel.cr3, idt: bare.kernel.idtBase), []] {
            var builder = CoreBuilder()
            builder.segments = [CoreBuilder.notes(notes), CoreBuilder.load(0, bare.bytes)]
            if notes.isEmpty {
                let error = #expect(throws: EngineError.self) { try survey(builder.build()) }
                #expect({ if case .discovery(.noKernel) = error { true } else { false } }())
            } else {
                #expect(try survey(builder.build()).kernel.base.rawValue == bare.kernel.base)
            }
        }
    }

    @Test("Two kernels in one image are an error that names both, and none is chosen")
    func twoKernels() throws {
        let first = KernelImage()
        let second = KernelImage(base: 0xffff_f802_1000_0000, memoryBase: 4 << 20)
        let error = #expect(throws: EngineError.self) { try survey(first.bytes + second.bytes) }
        guard case .discovery(.ambiguous(let what, let candidates)) = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        #expect(Set(candidates.map(\.rawValue)) == [first.kernel.base, second.kernel.base])
        #expect(what.contains("0x" + String(second.kernel.cr3, radix: 16)))
        #expect(String(describing: error).contains(GuestVirtualAddress(first.kernel.base).description))
        // With the second one's System process gone, it is no kernel that runs.
        second.kernel.write(UInt64(0), at: second.kernel.address("PsInitialSystemProcess"))
        #expect(try survey(first.bytes + second.bytes).kernel.base.rawValue == first.kernel.base)
        // Told by a vCPU, there is nothing to choose.
        let whole = KernelImage(base: 0xffff_f802_1000_0000, memoryBase: 4 << 20)
        var builder = CoreBuilder()
        builder.segments = [
            CoreBuilder.notes(CoreBuilder.processor(cr3: whole.kernel.cr3, idt: whole.kernel.idtBase)),
            CoreBuilder.load(0, first.bytes + whole.bytes),
        ]
        #expect(try survey(builder.build()).kernel.base.rawValue == whole.kernel.base)
    }

    @Test("Two boots of a kernel at one address are told apart by their page tables")
    func sameAddress() throws {
        let image = KernelImage().bytes + KernelImage(memoryBase: 4 << 20).bytes
        let error = #expect(throws: EngineError.self) { try survey(image) }
        #expect({ if case .discovery(.ambiguous(_, let found)) = error { found.count == 2 } else { false } }())
    }

    @Test("Memory without a root that maps itself, without an interrupt table, or with other handlers shows nothing")
    func nothing() throws {
        #expect(try KernelImage(mapsItself: false).found() == [])
        let noTable = KernelImage()
        noTable.kernel.write([UInt8](repeating: 0, count: 4096), at: noTable.kernel.idtBase)
        #expect(try noTable.found() == [])
        let elsewhere = KernelImage()
        elsewhere.kernel.write(UInt64(0xffff_f804), at: elsewhere.kernel.idtBase + 14 * 16 + 8)
        #expect(try elsewhere.found() == [])
        let data = KernelImage()
        for page in UInt64(0)..<UInt64(data.kernel.image.size) / 4096 {
            let address = data.kernel.base + page * 4096
            data.kernel.setEntry(of: address, to: data.kernel.entry(of: address) | 1 << 63)
        }
        #expect(try data.found() == [])
        let open = KernelImage()
        for page in UInt64(0)..<UInt64(open.kernel.image.size) / 4096 {
            let address = open.kernel.base + page * 4096
            open.kernel.setEntry(of: address, to: open.kernel.entry(of: address) | 1 << 2)
        }
        #expect(try open.found() == [])
    }

    @Test(
        "An interrupt table is found at any multiple of 16, and at its start only", arguments: [0, 0x80, 0xf10 - 0x10])
    func unaligned(offset: Int) throws {
        let image = KernelImage()
        let gates = try image.kernel.tables.memory.bytes(at: GuestVirtualAddress(image.kernel.idtBase), count: 512)
        let place = image.kernel.idtBase + UInt64(offset)
        // The rest of the table is on the next page, which a search need not know.
        let kept = Array(gates.prefix(4096 - offset))
        image.kernel.write([UInt8](repeating: 0, count: 4096), at: image.kernel.idtBase)
        image.kernel.write(kept, at: place)
        #expect(try image.found().map(\.idtBase.rawValue) == [place])
    }

    @Test(
        "A root of page-table isolation, which shows handlers but no kernel, does not stand in for one that shows both")
    func isolation() throws {
        let image = KernelImage(mapsItself: false)
        let kernel = image.kernel
        // The isolated root comes first in memory; one with the kernel's tables behind it.
        let shadow = PageTableBuilder(ram: kernel.ram)
        for page in [kernel.idtBase, kernel.base + 0x1000] {
            shadow.map(page, to: kernel.entry(of: page) & 0xf_ffff_f000, .kernelCode)
        }
        let whole = kernel.ram.allocate()
        for index in 256..<512 as Range<UInt64> {
            kernel.ram.store(kernel.ram.load(UInt64.self, at: kernel.cr3 + index * 8), at: whole + index * 8)
        }
        for root in [shadow.root, whole] { kernel.ram.store(root | 3, at: root + 0x1ed * 8) }
        #expect(try image.found().map(\.control.cr3) == [shadow.root, whole])
        #expect(try survey(image.bytes).kernel.base.rawValue == kernel.base)
    }

    @Test("An interrupt table in a large page is found at its address there")
    func largePage() throws {
        let image = KernelImage()
        let alias: UInt64 = 0xffff_b900_0000_0000
        let physical = image.kernel.entry(of: image.kernel.idtBase) & 0xf_ffff_f000
        // Bit 12 of such an entry is no part of the address, but PAT.
        image.kernel.tables.map(alias, to: physical & ~0x1f_ffff | 1 << 12, .kernelData, level: 2)
        image.kernel.tables.unmap(image.kernel.idtBase)
        #expect(try image.found().map(\.idtBase.rawValue) == [alias + (physical & 0x1f_ffff)])
        #expect(try survey(image.bytes).kernel.base.rawValue == image.kernel.base)
    }

    @Test("Page tables made to be followed for ever, or to map one table everywhere, end in an error")
    func endless() throws {
        let image = KernelImage()
        // A table that each of its own entries leads back to, at every level.
        let knot = image.kernel.ram.allocate()
        for index in 0..<512 as Range<UInt64> { image.kernel.ram.store(knot | 3, at: knot + index * 8) }
        for index in 256..<260 as Range<UInt64> { image.kernel.ram.store(knot | 3, at: image.kernel.cr3 + index * 8) }
        #expect(throws: TableSearchError.tooMany("page tables", limit: 1 << 17)) { try image.found() }

        let everywhere = KernelImage()
        let table = everywhere.kernel.entry(of: everywhere.kernel.idtBase) & 0xf_ffff_f000
        let leaf = everywhere.kernel.ram.allocate()
        let directory = everywhere.kernel.ram.allocate()
        for index in 0..<512 as Range<UInt64> {
            everywhere.kernel.ram.store(table | 3, at: leaf + index * 8)
            everywhere.kernel.ram.store(leaf | 3, at: directory + index * 8)
        }
        everywhere.kernel.ram.store(
            directory | 3, at: everywhere.kernel.tables.entryAddress(of: 0xffff_b900_0000_0000, level: 3))
        // Roots without number, each with thousands of views.
        let crowd = KernelImage()
        let many = crowd.kernel.ram.allocate()
        let pages = crowd.kernel.entry(of: crowd.kernel.idtBase) & 0xf_ffff_f000
        for index in 0..<512 as Range<UInt64> { crowd.kernel.ram.store(pages | 3, at: many + index * 8) }
        let upper = crowd.kernel.ram.allocate()
        for index in 0..<16 as Range<UInt64> { crowd.kernel.ram.store(many | 3, at: upper + index * 8) }
        crowd.kernel.ram.store(
            upper | 3, at: crowd.kernel.tables.entryAddress(of: 0xffff_b900_0000_0000, level: 3))
        let template = (256..<512).map { crowd.kernel.ram.load(UInt64.self, at: crowd.kernel.cr3 + $0 * 8) }
        for _ in 0..<600 {
            let root = crowd.kernel.ram.allocate()
            for (index, entry) in template.enumerated() {
                crowd.kernel.ram.store(entry, at: root + 2048 + UInt64(index) * 8)
            }
            crowd.kernel.ram.store(root | 3, at: root + 0x1ed * 8)
        }
        #expect(throws: TableSearchError.tooMany("page tables that map interrupt tables", limit: 1 << 22)) {
            try crowd.found()
        }
        #expect(throws: TableSearchError.tooMany("mappings of interrupt tables", limit: 1 << 14)) {
            try everywhere.found()
        }
    }

    @Test("Garbage among the tables is an error or a find, never a trap", arguments: 1...4 as ClosedRange<UInt64>)
    func garbage(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        for _ in 0..<25 {
            let image = KernelImage()
            defer { image.kernel.ram.unmap() }
            let tables =
                [image.kernel.cr3, image.kernel.entry(of: image.kernel.idtBase) & 0xf_ffff_f000]
                + (1...3).map { image.kernel.tables.entryAddress(of: image.kernel.idtBase, level: $0) & ~0xfff }
            for _ in 0..<Int.random(in: 1...40, using: &random) {
                guard let table = tables.randomElement(using: &random) else { continue }
                let place = table + (random.next() & 511) * 8
                switch random.next() % 3 {
                case 0: image.kernel.ram.store(random.next(), at: place)
                case 1: image.kernel.ram.store(UInt64.max, at: place)
                default: image.kernel.ram.store((tables.randomElement(using: &random) ?? 0) | 0x83, at: place)
                }
            }
            if let found = try? image.found() {
                _ = try? KernelLocator(physical: image.kernel.ram.physical).locate(among: found)
            }
        }
    }
}
