/// Bytes of a range of which some pages may be missing, and which.
///
/// Missing bytes are zero in `bytes`; the accessors never hand one out.
public struct PartialBytes: Sendable {
    /// A run of pages that could not be read, and why its first one could not.
    public struct Gap: Hashable, Sendable {
        /// Offsets into the bytes.
        public var range: Range<Int>
        public var error: MemoryError
    }

    /// Where the range starts.
    public let address: GuestVirtualAddress
    public internal(set) var bytes: [UInt8]
    /// In order, apart from each other.
    public internal(set) var gaps: [Gap] = []

    public init(address: GuestVirtualAddress, bytes: [UInt8]) {
        self.address = address
        self.bytes = bytes
    }

    public var isComplete: Bool { gaps.isEmpty }

    /// The first gap that touches `count` bytes at `offset`.
    public func gap(at offset: Int, count: Int) -> Gap? {
        // The first gap that ends behind `offset`, by bisection.
        var low = 0
        var high = gaps.count
        while low < high {
            let middle = (low + high) / 2
            if gaps[middle].range.upperBound > offset { high = middle } else { low = middle + 1 }
        }
        guard low < gaps.count, count > 0 else { return nil }
        return gaps[low].range.lowerBound - offset < count ? gaps[low] : nil
    }

    /// Whether `count` bytes at `offset` lie inside and were read.
    public func contains(offset: Int, count: Int) -> Bool {
        offset >= 0 && count >= 0 && offset <= bytes.count && count <= bytes.count - offset
            && gap(at: offset, count: count) == nil
    }

    /// The integer at `offset`, where all of it lies inside and was read.
    public func load<Value: FixedWidthInteger & BitwiseCopyable>(_ type: Value.Type, at offset: Int) -> Value? {
        guard contains(offset: offset, count: MemoryLayout<Value>.size) else { return nil }
        return bytes.withUnsafeBytes { Value(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: type)) }
    }

    /// The bytes of a range, where all of them lie inside and were read.
    public func slice(at offset: Int, count: Int) -> ArraySlice<UInt8>? {
        contains(offset: offset, count: count) ? bytes[offset..<offset + count] : nil
    }

    /// The offset of a guest address, where it lies inside.
    public func offset(of address: GuestVirtualAddress) -> Int? {
        let distance = address.distance(from: self.address)
        return distance < UInt64(bytes.count) ? Int(distance) : nil
    }

    mutating func addGap(_ range: Range<Int>, _ error: MemoryError) {
        if let last = gaps.last, last.range.upperBound == range.lowerBound {
            gaps[gaps.count - 1].range = last.range.lowerBound..<range.upperBound
        } else {
            gaps.append(Gap(range: range, error: error))
        }
    }
}

extension TranslatedMemory {
    /// The `count` bytes from `address` on, as far as their pages can be read now.
    /// - Throws: `tooLong` and `notCanonical`; a page that cannot be read is a gap.
    public func readPartial(
        at address: GuestVirtualAddress, count: UInt64, maximum: UInt64
    ) throws(MemoryError) -> PartialBytes {
        guard count <= min(maximum, UInt64(Int32.max)) else {
            throw .tooLong(address, count: count, maximum: maximum)
        }
        try checkRange(at: address, count: count)
        var result = PartialBytes(address: address, bytes: [UInt8](repeating: 0, count: Int(count)))
        var done = 0
        while done < Int(count) {
            let next = address + UInt64(done)
            let toPageEnd = Int(4096 - (next.rawValue & 0xfff))
            let part = min(Int(count) - done, toPageEnd)
            if let error = readPage(at: next, into: &result.bytes, done..<done + part) {
                result.addGap(done..<done + part, error)
            }
            done += part
        }
        return result
    }

    private func readPage(
        at address: GuestVirtualAddress, into bytes: inout [UInt8], _ range: Range<Int>
    ) -> MemoryError? {
        do throws(MemoryError) {
            try bytes.withUnsafeMutableBufferPointer { (buffer) throws(MemoryError) in
                try read(
                    at: address,
                    into: UnsafeMutableRawBufferPointer(UnsafeMutableBufferPointer(rebasing: buffer[range])))
            }
            return nil
        } catch {
            return error
        }
    }
}
