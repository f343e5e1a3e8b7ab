import CLinux

extension PhysicalMemory {
    private static let searchPart = 4 << 20

    /// Where the first aligned 64-bit word lies whose value is one of `values`; nil where all of RAM has none.
    ///
    /// All of it is read: the guest has to stand for the answer to mean something.
    /// - Parameters:
    ///   - excluded: physical addresses at which words do not count.
    ///   - meanwhile: called between parts of some megabytes.
    public func firstWord<Failure: Error>(
        in values: Range<UInt64>, except excluded: [Range<UInt64>] = [], meanwhile: () throws(Failure) -> Void
    ) throws -> GuestPhysicalAddress? {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.searchPart, alignment: 8)
        defer { buffer.deallocate() }
        for region in regions {
            var done: UInt64 = 0
            while done < region.length {
                let size = Int(min(region.length - done, UInt64(Self.searchPart)))
                let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<size])
                try read(at: region.base + done, into: part)
                let words = part.bindMemory(to: UInt64.self)
                var rest = words[...]
                while let next = Self.firstIndex(in: rest, of: values) {
                    let place = region.base + (done + 8 * UInt64(next))
                    if !excluded.contains(where: { $0.contains(place.rawValue) }) { return place }
                    rest = rest[(next + 1)...]
                }
                done += UInt64(size)
                try meanwhile()
            }
        }
        return nil
    }

    private static func firstIndex(
        in words: Slice<UnsafeMutableBufferPointer<UInt64>>, of values: Range<UInt64>
    ) -> Int? {
        let part = UnsafeMutableBufferPointer(rebasing: words)
        let found = clinux_find_word(
            part.baseAddress, part.count, values.lowerBound, values.upperBound - values.lowerBound)
        return found < part.count ? words.startIndex + found : nil
    }
}
