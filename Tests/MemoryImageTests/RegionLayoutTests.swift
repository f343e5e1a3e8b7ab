import GuestMemory
import Testing

@testable import MemoryImage

@Suite("Segments of a core") struct RegionLayoutTests {
    /// Physical address, offset in the file, size.
    private func regions(
        _ segments: [(UInt64, UInt64, UInt64)], fillsGaps: Bool = false, fileSize: UInt64 = 1 << 40
    ) throws(ImageError) -> [[UInt64]] {
        var layout = RegionLayout()
        for (physical, offset, size) in segments {
            var builder = CoreBuilder()
            builder.segments = [.init(physical: physical, offset: offset, size: size)]
            let bytes = builder.build()
            guard let segment = ELFSegment(bytes, at: 128, .elf64) else { continue }
            try layout.add(segment, fileSize: fileSize)
        }
        return try layout.regions(fillsGaps: fillsGaps, fileSize: fileSize).map {
            [$0.base.rawValue, $0.hostAddress, $0.length]
        }
    }

    @Test("Segments that adjoin in memory and in the file are one region; in memory alone they are two")
    func adjoining() throws {
        #expect(
            try regions([(0x3000, 0x1300, 0x1000), (0x2000, 0x300, 0x1000)]) == [[0x2000, 0x300, 0x2000]])
        #expect(
            try regions([(0x2000, 0x300, 0x1000), (0x3000, 0x2300, 0x1000)])
                == [[0x2000, 0x300, 0x1000], [0x3000, 0x2300, 0x1000]])
    }

    @Test("Segments that overlap are one where they agree, whichever comes first and whatever is inside of what")
    func overlapping() throws {
        #expect(
            try regions([(0x1000, 0x1300, 0x1000), (0, 0x300, 0x8000), (0x7000, 0x7300, 0x2000), (0, 0x300, 0x1000)])
                == [[0, 0x300, 0x9000]])
    }

    @Test("Segments that give an address two contents are refused by that address")
    func contradicting() {
        #expect(throws: ImageError.contradiction(physical: 0x1fff)) {
            try regions([(0x1000, 0x300, 0x1000), (0x1fff, 0x9000, 0x1000)])
        }
        #expect(throws: ImageError.contradiction(physical: 0)) { try regions([(0, 0x300, 8), (0, 0x400, 8)]) }
        // The one that contradicts need not be next to the one it contradicts.
        #expect(throws: ImageError.contradiction(physical: 0x4000)) {
            try regions([(0, 0x300, 0x8000), (0x1000, 0x1300, 0x1000), (0x4000, 0x300, 0x1000)])
        }
    }

    @Test("In a paging dump what lies between two segments of one block is memory; between two blocks nothing is")
    func gaps() throws {
        let segments: [(UInt64, UInt64, UInt64)] = [
            (0, 0x300, 0x1000), (0x5000, 0x5300, 0x1000), (0x10_0000, 0xa_0300, 0x1000),
        ]
        #expect(try regions(segments, fillsGaps: true) == [[0, 0x300, 0x6000], [0x10_0000, 0xa_0300, 0x1000]])
        #expect(try regions(segments).count == 3)
    }

    @Test("A segment of which the file has nothing is passed over, whatever its offset says")
    func empty() throws {
        #expect(try regions([(0, .max, 0), (0x1000, 0x300, 0x1000)]) == [[0x1000, 0x300, 0x1000]])
        #expect(throws: ImageError.noMemory) { try regions([(0, .max, 0)]) }
    }

    @Test("Sizes and offsets that overflow, or leave the file or the address space, are errors")
    func overflow() {
        for (offset, size) in [(UInt64.max, 1), (0, .max), (1 << 63, 1 << 63), (0x1000, 0x1001)] as [(UInt64, UInt64)] {
            #expect(throws: ImageError.cutShort("the memory at 0x0", offset: offset, count: size, size: 0x2000)) {
                try regions([(0, offset, size)], fileSize: 0x2000)
            }
        }
        for physical in [.max, 1 << 63, 1 << 52, (1 << 52) - 1] as [UInt64] {
            let error = #expect(throws: ImageError.self) { try regions([(physical, 0, 0x1000)], fileSize: 0x2000) }
            #expect({ if case .malformed = error { true } else { false } }())
        }
        #expect(throws: Never.self) { try regions([((1 << 52) - 0x1000, 0, 0x1000)], fileSize: 0x2000) }
    }

    @Test("Segments that are the same bytes of the file cannot make more memory than the file has")
    func shared() throws {
        let segments = [(0, 0, 0x1000), (0x10_0000, 0, 0x1000)] as [(UInt64, UInt64, UInt64)]
        #expect(throws: ImageError.malformed("several of its segments are the same bytes of the file")) {
            try regions(segments, fileSize: 0x1fff)
        }
        #expect(try regions(segments, fileSize: 0x2000).count == 2)
    }

    @Test("More pieces than reads could search in reasonable time are refused")
    func pieces() {
        let pieces = (0...UInt64(RegionLayout.maximumRegions)).map { ($0 * 0x2000, $0 * 0x1000, UInt64(0x1000)) }
        #expect(throws: Never.self) { try regions(Array(pieces.dropLast())) }
        #expect(
            throws: ImageError.tooLarge("pieces of memory apart from each other", count: 4097, maximum: 4096)
        ) { try regions(pieces) }
    }
}
