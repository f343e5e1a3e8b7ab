import CLinux

extension PhysicalMemory {
    private static let searchPart = 4 << 20

    /// Where the first aligned word lies whose value is one of `values`; nil where all of RAM has none.
    ///
    /// All of it is read: the guest has to stand for the answer to mean something.
    /// - Parameters:
    ///   - wordSize: 8 or 4 bytes; with 4, `values` are values of 32 bits.
    ///   - excluded: physical addresses at which words do not count.
    ///   - meanwhile: called between parts of some megabytes.
    public func firstWord<Failure: Error>(
        in values: Range<UInt64>, wordSize: UInt64 = 8, except excluded: [Range<UInt64>] = [],
        meanwhile: () throws(Failure) -> Void
    ) throws -> GuestPhysicalAddress? {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.searchPart, alignment: 8)
        defer { buffer.deallocate() }
        for region in regions {
            var done: UInt64 = 0
            while done < region.length {
                let size = Int(min(region.length - done, UInt64(Self.searchPart)))
                let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<size])
                try read(at: region.base + done, into: part)
                var start = 0
                while let next = Self.firstIndex(in: part, from: start, of: values, wordSize: Int(wordSize)) {
                    let place = region.base + (done + wordSize * UInt64(next))
                    if !excluded.contains(where: { $0.contains(place.rawValue) }) { return place }
                    start = next + 1
                }
                done += UInt64(size)
                try meanwhile()
            }
        }
        return nil
    }

    private static func firstIndex(
        in part: UnsafeMutableRawBufferPointer, from start: Int, of values: Range<UInt64>, wordSize: Int
    ) -> Int? {
        let count = part.count / wordSize - start
        let length = values.upperBound - values.lowerBound
        let found: Int
        if wordSize == 8 {
            let words = part.bindMemory(to: UInt64.self).baseAddress.map { $0 + start }
            found = clinux_find_word(words, count, values.lowerBound, length)
        } else {
            let words = part.bindMemory(to: UInt32.self).baseAddress.map { $0 + start }
            found = clinux_find_word32(
                words, count, UInt32(truncatingIfNeeded: values.lowerBound), UInt32(truncatingIfNeeded: length))
        }
        return found < count ? start + found : nil
    }
}
