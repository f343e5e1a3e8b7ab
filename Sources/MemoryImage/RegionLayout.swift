import GuestMemory

/// Puts the parts of physical memory that a core holds in order.
///
/// Segments that overlap, or adjoin, are one where they say the same: that a physical address is at the same
/// place in the file. QEMU's paging dumps have a segment for each virtual address of a page. Where they differ the
/// core is refused: nothing tells which is right.
struct RegionLayout {
    /// Each read searches them.
    static let maximumRegions = 4096
    /// No x86 processor has physical addresses above: Intel SDM volume 3, 4.1.4.
    static let physicalEnd: UInt64 = 1 << 52

    private struct Part {
        var base: UInt64
        var end: UInt64
        /// From a physical address to its offset in the file, modulo 2^64.
        var shift: UInt64
    }

    private var parts: [Part] = []

    /// - Parameter segment: a PT_LOAD. One of which nothing is in the file is passed over: QEMU writes such for
    ///   memory that a dump was told to leave out, with an offset of all ones.
    mutating func add(_ segment: ELFSegment, fileSize: UInt64) throws(ImageError) {
        guard segment.size > 0 else { return }
        guard segment.offset <= fileSize, segment.size <= fileSize - segment.offset else {
            throw .cutShort(
                "the memory at 0x\(String(segment.physical, radix: 16))", offset: segment.offset,
                count: segment.size, size: fileSize)
        }
        guard segment.physical < Self.physicalEnd, segment.size <= Self.physicalEnd - segment.physical else {
            throw .malformed("a segment beyond all physical addresses, at 0x\(String(segment.physical, radix: 16))")
        }
        parts.append(
            Part(
                base: segment.physical, end: segment.physical + segment.size,
                shift: segment.offset &- segment.physical))
    }

    /// The regions, with their offsets in the file.
    /// - Parameter fillsGaps: what lies between two parts with the same shift is memory too. So it is in QEMU's
    ///   paging dumps: RAM is written as a whole, and only what was mapped has a segment.
    /// - Throws: `contradiction`, `noMemory`, `tooLarge`; `malformed` where there is more memory than bytes in the
    ///   file: a small file could make a search of memory endless.
    func regions(fillsGaps: Bool, fileSize: UInt64) throws(ImageError) -> [RAMRegion] {
        var merged: [Part] = []
        for part in parts.sorted(by: { $0.base < $1.base }) {
            guard let last = merged.last else {
                merged.append(part)
                continue
            }
            if part.base < last.end, part.shift != last.shift { throw .contradiction(physical: part.base) }
            if part.shift == last.shift, part.base <= last.end || fillsGaps {
                merged[merged.count - 1].end = max(last.end, part.end)
            } else {
                merged.append(part)
            }
        }
        guard !merged.isEmpty else { throw .noMemory }
        guard merged.count <= Self.maximumRegions else {
            throw .tooLarge(
                "pieces of memory apart from each other", count: UInt64(merged.count),
                maximum: UInt64(Self.maximumRegions))
        }
        // At most 4096 of less than 2^52 bytes each.
        guard merged.reduce(0, { $0 &+ ($1.end - $1.base) }) <= fileSize else {
            throw .malformed("several of its segments are the same bytes of the file")
        }
        return merged.map {
            RAMRegion(base: GuestPhysicalAddress($0.base), length: $0.end - $0.base, hostAddress: $0.base &+ $0.shift)
        }
    }
}
