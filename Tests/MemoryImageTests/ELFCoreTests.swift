import GuestMemory
import HypervisorInterface
import Testing
import X86

@testable import MemoryImage

@Suite("ELF cores") struct ELFCoreTests {
    /// A page whose bytes tell which it is.
    static func page(_ number: UInt8) -> [UInt8] { [UInt8](repeating: number, count: 4096) }

    @Test("Memory is found by its physical address, in cores of 64 and of 32 bits", arguments: [true, false])
    func memory(is64: Bool) throws {
        var builder = CoreBuilder(is64: is64, machine: is64 ? 62 : 3)
        builder.segments = [
            .init(type: 4), CoreBuilder.load(0, Self.page(1)), CoreBuilder.load(0x9000, Self.page(2) + Self.page(3)),
            .init(type: 0x6fff_ffff, contents: [9, 9]),
        ]
        let file = builder.build()
        let core = try ELFCore(file)
        #expect(core.regions.map(\.base.rawValue) == [0, 0x9000])
        #expect(core.regions.map(\.length) == [4096, 8192])
        #expect(core.bytes(at: 0xff8, count: 8, of: file) == [UInt8](repeating: 1, count: 8))
        #expect(core.bytes(at: 0x9ffe, count: 4, of: file) == [2, 2, 3, 3])
        #expect(core.header.machine == (is64 ? .amd64 : .i386))
        #expect(core.processors.isEmpty && !core.isByQEMU && !core.notesAreDamaged)
    }

    @Test("A 64-bit core of a 32-bit machine is one: QEMU writes it where there is much memory")
    func mixed() throws {
        var builder = CoreBuilder(is64: true, machine: 3)
        builder.segments = [CoreBuilder.load(1 << 32, Self.page(1))]
        let core = try ELFCore(builder.build())
        #expect(core.header.machine == .i386 && core.regions[0].base.rawValue == 1 << 32)
    }

    @Test("More program headers than fit the field are counted by the first section header", arguments: [true, false])
    func extendedCount(is64: Bool) throws {
        var builder = CoreBuilder(is64: is64)
        builder.hasExtendedCount = true
        builder.segments = [CoreBuilder.load(0x1000, Self.page(1)), CoreBuilder.load(0x5000, Self.page(2))]
        #expect(try ELFCore(builder.build()).regions.count == 2)
        builder.count = 1 << 31
        #expect(throws: ImageError.tooLarge("program headers", count: 1 << 31, maximum: 1 << 20)) {
            try ELFCore(builder.build())
        }
    }

    @Test("QEMU's notes give each vCPU's tables; those of others are passed over", arguments: [true, false])
    func notes(is64: Bool) throws {
        var builder = CoreBuilder(is64: is64)
        let other = CoreBuilder.note("CORE", 1, [UInt8](repeating: 7, count: 337))
        builder.segments = [
            CoreBuilder.notes(
                other + CoreBuilder.processor(cr3: 0x1000, idt: 0xffff_f800_0000_1000) + other
                    + CoreBuilder.processor(cr3: 0x2000, idt: 0xffff_f800_0000_2000, codeSelector: 0x33)
                    + CoreBuilder.note("VMCOREINFO", 0, [])),
            CoreBuilder.load(0, Self.page(1)),
        ]
        let core = try ELFCore(builder.build())
        #expect(core.isByQEMU && !core.notesAreDamaged)
        #expect(core.processors.map(\.cr3) == [0x1000, 0x2000])
        #expect(core.processors.map(\.isPrivileged) == [true, false])
        let tables = core.processors[0].tables(of: .amd64)
        #expect(tables.idtBase == GuestVirtualAddress(0xffff_f800_0000_1000) && tables.idtLimit == 0xfff)
        #expect(tables.gdtBase == GuestVirtualAddress(0xffff_f806_4904_0000) && tables.gdtLimit == 0x57)
        #expect(tables.control.cr0 == 0x8005_0033 && tables.control.cr2 == 0x1234 && tables.control.cr4 == 0x6f8)
        #expect(PagingMode(tables.control) == .fourLevel)
        #expect(!tables.isInferred)
    }

    @Test(
        "A vCPU is in long mode where the core is x86-64 and the vCPU has paging and PAE on",
        arguments: [
            (0x8005_0033, 0x6f8, ELFHeader.Machine.amd64, PagingMode.fourLevel),
            (0x8005_0033, 0x16f8, .amd64, .fiveLevel), (0x8005_0033, 0x6f8, .i386, .pae),
            (0x8005_0033, 0x10, .i386, .legacy32(largePages: true)),
            (0x8005_0033, 0x10, .amd64, .legacy32(largePages: true)),
            (0x10, 0, .amd64, .none),
        ] as [(UInt64, UInt64, ELFHeader.Machine, PagingMode)])
    func longMode(cr0: UInt64, cr4: UInt64, machine: ELFHeader.Machine, mode: PagingMode) throws {
        let note = CoreBuilder.processor(cr0: cr0, cr3: 0, cr4: cr4, idt: 0)
        let state = try #require(QEMUProcessorState(note[20...]))
        #expect(PagingMode(state.tables(of: machine).control) == mode)
    }

    @Test("A note of another version, or shorter than it says, is no vCPU's state, and none of the notes is used")
    func otherNotes() throws {
        let good = CoreBuilder.processor(cr3: 0x1000, idt: 0)
        for bad in [
            CoreBuilder.processor(cr3: 0, idt: 0, version: 2), CoreBuilder.processor(cr3: 0, idt: 0, size: 431),
            CoreBuilder.processor(cr3: 0, idt: 0, size: 441), CoreBuilder.note("QEMU", 0, [1, 0, 0, 0]),
        ] {
            var builder = CoreBuilder()
            builder.segments = [CoreBuilder.notes(good + bad), CoreBuilder.load(0, Self.page(1))]
            let core = try ELFCore(builder.build())
            #expect(core.processors.isEmpty && core.notesAreDamaged && core.isByQEMU)
        }
    }

    @Test("Notes whose sizes lead outside leave memory usable, and are not used themselves")
    func lyingNotes() throws {
        let good = CoreBuilder.processor(cr3: 0x1000, idt: 0)
        for (place, value) in [(0, .max), (4, .max), (4, 1 << 31), (0, 0x7fff_fffd), (4, 441 + 8)] as [(Int, UInt32)] {
            var notes = good
            notes.replaceSubrange(place..<place + 4, with: CoreBuilder.bytes(value))
            var builder = CoreBuilder()
            builder.segments = [CoreBuilder.notes(good + notes), CoreBuilder.load(0, Self.page(1))]
            let core = try ELFCore(builder.build())
            #expect(core.processors.isEmpty && core.notesAreDamaged)
            #expect(core.regions.count == 1)
        }
        for size in [good.count * 2, 1 << 40, Int.max] {
            var builder = CoreBuilder()
            var notes = CoreBuilder.notes(good)
            notes.size = UInt64(size)
            builder.segments = [CoreBuilder.load(0, Self.page(1)), notes, notes]
            #expect(try ELFCore(builder.build()).notesAreDamaged)
        }
    }

    @Test("Only in QEMU's paging dumps memory between two segments is taken from between their places in the file")
    func pagingDumps() throws {
        func regions(byQEMU: Bool, virtual: UInt64?) throws -> [[UInt64]] {
            var builder = CoreBuilder()
            let note = byQEMU ? CoreBuilder.processor(cr3: 0, idt: 0) : CoreBuilder.note("CORE", 1, [])
            // One block of three pages, of which the middle one is mapped nowhere.
            let block = Self.page(1) + Self.page(2) + Self.page(3)
            let start = UInt64(64 + 64 + 3 * 56)
            builder.segments = [
                .init(virtual: virtual ?? 0x1000, physical: 0x1000, contents: block, offset: start, size: 4096),
                .init(virtual: virtual ?? 0x3000, physical: 0x3000, offset: start + 0x2000, size: 4096),
                CoreBuilder.notes(note),
            ]
            let file = builder.build()
            let core = try ELFCore(file)
            if core.regions.count == 1 {
                #expect(core.bytes(at: 0x1ffe, count: 0x1004, of: file) == [1, 1] + Self.page(2) + [3, 3])
            }
            return core.regions.map { [$0.base.rawValue, $0.length] }
        }
        let apart: [[UInt64]] = [[0x1000, 0x1000], [0x3000, 0x1000]]
        #expect(try regions(byQEMU: true, virtual: 0xffff_f800_0000_0000) == [[0x1000, 0x3000]])
        #expect(try regions(byQEMU: false, virtual: 0xffff_f800_0000_0000) == apart)
        // Without paging QEMU gives the physical address twice, or no virtual one.
        #expect(try regions(byQEMU: true, virtual: nil) == apart)
        #expect(try regions(byQEMU: true, virtual: 0) == apart)
    }

    @Test("What is no core of an x86 machine is refused by what it is")
    func others() {
        func error(_ change: (inout CoreBuilder) -> Void) -> ImageError? {
            var builder = CoreBuilder()
            builder.segments = [CoreBuilder.load(0, Self.page(1))]
            change(&builder)
            do throws(ImageError) {
                _ = try ELFCore(builder.build())
                return nil
            } catch { return error }
        }
        #expect(error { _ in } == nil)
        #expect(error { $0.type = 2 } == .notACore(type: 2))
        #expect(error { $0.machine = 183 } == .otherMachine("ELF machine 183"))
        #expect(error { $0.byteOrder = 2 } == .otherMachine("big-endian"))
        #expect(error { $0.segments = [] } == .malformed("it has no program headers"))
        #expect(error { $0.segments = [CoreBuilder.notes([])] } == .noMemory)
    }

    @Test("A core that ends early is called so, wherever it ends; nothing else comes of it")
    func cutShort() throws {
        var builder = CoreBuilder()
        builder.segments = [
            CoreBuilder.notes(CoreBuilder.processor(cr3: 0, idt: 0)), CoreBuilder.load(0, Self.page(1)),
        ]
        let file = builder.build()
        #expect(throws: Never.self) { try ELFCore(file) }
        for length in 4..<file.count {
            let error = #expect(throws: ImageError.self) { try ELFCore(Array(file[..<length])) }
            #expect({ if case .cutShort = error { true } else { false } }(), "\(length): \(String(describing: error))")
        }
    }
}
