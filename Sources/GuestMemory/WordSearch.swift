import CLinux

extension PhysicalMemory {
    private static let searchPart = 4 << 20

    /// Where the first aligned 64-bit word lies whose value is one of `values`; nil where all of RAM has none.
    ///
    /// All of it is read: the guest has to stand for the answer to mean something.
    /// - Parameter meanwhile: called between parts of some megabytes.
    public func firstWord<Failure: Error>(
        in values: Range<UInt64>, meanwhile: () throws(Failure) -> Void
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
                let found = clinux_find_word(
                    words.baseAddress, words.count, values.lowerBound, values.upperBound - values.lowerBound)
                if found < words.count { return region.base + (done + 8 * UInt64(found)) }
                done += UInt64(size)
                try meanwhile()
            }
        }
        return nil
    }
}
