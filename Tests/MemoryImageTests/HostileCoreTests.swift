import Foundation
import TestSupport
import Testing

@testable import MemoryImage

/// A file's bytes that note what is read of them.
private final class WatchedBytes: ImageBytes {
    let bytes: [UInt8]
    private(set) var largestRead = 0
    private(set) var bytesRead = 0
    private(set) var readsOutside = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    var size: UInt64 { UInt64(bytes.count) }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Int32 {
        guard offset <= size, UInt64(buffer.count) <= size - offset else {
            readsOutside += 1
            return EIO
        }
        largestRead = max(largestRead, buffer.count)
        bytesRead += buffer.count
        return bytes.read(at: offset, into: buffer)
    }
}

@Suite("Hostile cores") struct HostileCoreTests {
    /// Cores to damage: of both classes, with notes, overlaps and an extended count.
    private static let originals: [[UInt8]] = {
        let notes =
            CoreBuilder.note("CORE", 1, [UInt8](repeating: 0, count: 336))
            + CoreBuilder.processor(cr3: 0x1000, idt: 0xffff_f800_0000_0000)
            + CoreBuilder.processor(cr3: 0x1000, idt: 0xffff_f800_0000_1000)
        let page = [UInt8](repeating: 0xa5, count: 4096)
        return [true, false].flatMap { is64 in
            [true, false].map { isExtended in
                var builder = CoreBuilder(is64: is64, machine: is64 ? 62 : 3)
                builder.hasExtendedCount = isExtended
                builder.segments = [
                    CoreBuilder.notes(notes), CoreBuilder.load(0, page),
                    CoreBuilder.load(0x1000, page, virtual: 0x8000_0000), CoreBuilder.load(0x10_0000, page),
                ]
                return builder.build()
            }
        }
    }()

    /// What an attacker, or a bad disk, would put there.
    private static let values: [UInt64] = [
        0, 1, 7, 0xff, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 32, (1 << 52) - 1, 1 << 52,
        1 << 63, .max - 4095, .max - 1, .max,
    ]

    /// Parses, and holds the promises: nothing outside is read, no piece is larger than the file, and each region
    /// that comes of it lies in the file.
    @discardableResult
    private func check(_ bytes: [UInt8], _ what: @autoclosure () -> String) -> Bool {
        let file = WatchedBytes(bytes)
        let core = try? ELFCore(file)
        #expect(file.readsOutside == 0, "\(what())")
        #expect(file.largestRead <= bytes.count, "\(what())")
        guard let core else { return false }
        #expect(core.regions.reduce(0) { $0 &+ $1.length } <= file.size, "\(what())")
        var end: UInt64 = 0
        for region in core.regions {
            #expect(region.length > 0 && region.base.rawValue >= end, "\(what())")
            end = region.base.rawValue &+ region.length
            #expect(end > region.base.rawValue && end <= RegionLayout.physicalEnd, "\(what())")
            #expect(
                region.hostAddress <= file.size && region.length <= file.size - region.hostAddress, "\(what())")
        }
        _ = core.processors.map { $0.tables(of: core.header.machine) }
        return true
    }

    @Test(
        "Of twenty thousand damaged cores each is an error or a core within its file",
        arguments: 0..<4 as Range<UInt64>)
    func mutations(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let original = Self.originals[Int(seed)]
        // The headers, the notes and a little of the memory.
        let interesting = original.count - 3 * 4096 + 64
        var accepted = 0
        for round in 0..<5000 {
            var bytes = original
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                let place = Int.random(in: 0..<interesting, using: &random)
                switch random.next() % 4 {
                case 0: bytes[place] ^= 1 << UInt8(random.next() & 7)
                case 1: bytes[place] = UInt8(truncatingIfNeeded: random.next())
                default:
                    // A field of some width, mostly aligned.
                    let width = [2, 4, 8][Int(random.next() % 3)]
                    let start = place & ~(width - 1)
                    let value = Self.values.randomElement(using: &random) ?? 0
                    for index in 0..<width where start + index < bytes.count {
                        bytes[start + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
                    }
                }
            }
            if random.next() % 8 == 0 { bytes.removeLast(Int.random(in: 0...bytes.count, using: &random)) }
            if check(bytes, "seed \(seed), round \(round)") { accepted += 1 }
        }
        // Otherwise the damage is such that nothing past the first bytes is tested.
        #expect(accepted > 250 && accepted < 4750, "\(accepted)")
    }

    @Test("Each field of the headers may have any of the worst values")
    func fields() {
        for (number, original) in Self.originals.enumerated() {
            for place in 0..<400 {
                for width in [2, 4, 8] where place % width == 0 {
                    for value in Self.values {
                        var bytes = original
                        for index in 0..<width {
                            bytes[place + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
                        }
                        check(bytes, "core \(number), \(width) bytes at \(place) are \(value)")
                    }
                }
            }
        }
    }

    @Test("A table of program headers as large as the file is read in pieces, and once")
    func largeTable() throws {
        var builder = CoreBuilder()
        builder.hasExtendedCount = true
        builder.segments = [CoreBuilder.load(0, [1, 2, 3])]
        builder.count = 1 << 18
        // Segments of no size.
        let bytes = builder.build() + [UInt8](repeating: 0, count: 56 << 18)
        let file = WatchedBytes(bytes)
        #expect(try ELFCore(file).regions.count == 1)
        #expect(file.largestRead <= 56 << 10)
        #expect(file.bytesRead <= bytes.count + 4096)
    }

    @Test("What the fuzzer starts from is in the repository, and is what its names say")
    func corpus() throws {
        let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("../../Fuzzing/Corpus")
        let files = try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
        var accepted: Set<String> = []
        for file in files {
            let bytes = [UInt8](try Data(contentsOf: file))
            if check(bytes, file.lastPathComponent) { accepted.insert(file.lastPathComponent) }
            // The whole way, as the fuzzer goes.
            let found = try? MemoryImage(path: file.path).processorTables()
            if file.lastPathComponent.hasPrefix("tables") { #expect(found?.count == 1, "\(file.lastPathComponent)") }
        }
        #expect(
            accepted.isSuperset(of: [
                "qemu-two-vcpus.core", "qemu-paging.core", "qemu-firmware.core", "elf32.core", "extended-count.core",
                "extended-count-32.core", "overlapping.core", "lying-notes.core", "left-out.core",
            ]), "\(accepted)")
        #expect(accepted.isDisjoint(with: ["contradiction.core", "beyond.core", "tables.raw", "tables-legacy.raw"]))
    }

    @Test("QEMU's own cores give what QEMU knew: its vCPUs' registers, and the page that was asked for")
    func written() throws {
        let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("../../Fuzzing/Corpus")
        func core(_ name: String) throws -> ELFCore {
            try ELFCore([UInt8](try Data(contentsOf: folder.appendingPathComponent(name))))
        }
        // `info registers` said CR3 400000 and CR0 80010033 of both, and each IDT is a page of its own.
        for name in ["qemu-two-vcpus.core", "qemu-paging.core"] {
            let core = try core(name)
            #expect(core.isByQEMU && !core.notesAreDamaged && core.header.machine == .amd64)
            #expect(core.processors.map(\.cr3) == [0x40_0000, 0x40_0000])
            #expect(core.processors.map(\.cr0) == [0x8001_0033, 0x8001_0033])
            #expect(core.processors.map(\.idtLimit) == [0xfff, 0xfff])
            #expect(Set(core.processors.map(\.idtBase)).count == 2)
            #expect(core.processors.allSatisfy { $0.idtBase & 0xfff == 0 && $0.isPrivileged })
            #expect(core.regions.map { [$0.base.rawValue, $0.length] } == [[0x40_0000, 4096]])
        }
        let firmware = try core("qemu-firmware.core")
        #expect(firmware.header.machine == .i386 && firmware.header.elfClass == .elf64)
        #expect(firmware.processors.map { $0.cr0 & 1 << 31 } == [0, 0])
    }
}
