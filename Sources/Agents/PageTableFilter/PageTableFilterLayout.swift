/// Why the filter cannot be used as asked.
public enum PageTableFilterError: Error, Hashable, Sendable {
    /// The filter's image does not describe itself as expected; what is wrong, in words.
    case malformed(String)
    /// The filter has no room for another of these.
    case full(String)
}

extension PageTableFilterError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .malformed(let what): "the page-table filter's image cannot be used: \(what)"
        case .full(let what): "the page-table filter has no room for more \(what)"
        }
    }
}

/// What the filter in the guest shares with the host: its own description of where that is.
///
/// The source is `FILTER_DATA` of `Guest/agents/ptfilter/filter.h`. Offsets are in bytes from the agent's start, unless
/// said otherwise.
public struct PageTableFilterLayout: Hashable, Sendable {
    /// Slots of equal size, one behind the other.
    public struct Table: Hashable, Sendable {
        public var offset: Int
        /// A power of two.
        public var slots: Int
        /// In bytes.
        public var slotSize: Int

        /// Where a slot starts.
        public func slot(_ number: Int) -> Int { offset + (number & (slots - 1)) * slotSize }

        /// Where a key's search starts: multiplicative hashing (Knuth, volume 3, 6.4).
        public func firstSlot(of key: UInt64) -> Int {
            Int(truncatingIfNeeded: (key &* 0x9e37_79b9_7f4a_7c15) >> 32) & (slots - 1)
        }
    }

    /// Fields of the shared data, in bytes from its start.
    public enum Field: Int, Hashable, Sendable, CaseIterable {
        /// UInt64: reports so far.
        case head = 0x40
        /// UInt64: how many of them the host has read; the host writes it.
        case tail = 0x80
        /// UInt64: page-table writes performed.
        case writes = 0xc0
        /// UInt64: reports for which there was no room.
        case lost = 0xc8
        /// UInt64: interrupts from where no known instruction is. Anything but 0 is an error.
        case unknown = 0xd0
        /// UInt64: interrupts from a program's code. Anything but 0 is an error.
        case fromUser = 0xd8
        /// UInt64: where the last unknown interrupt returned to.
        case lastUnknown = 0xe0
    }

    static let version: UInt32 = 1
    static let dataSize = 0x100
    static let writerSize = 24
    static let watchSize = 16
    static let reportSize = 64

    /// Of the shared data.
    public let data: Int
    public let writers: Table
    public let watches: Table
    public let ring: Table
    /// A key is in one of so many slots from its first one on.
    public let probes: Int
    /// A NOP that reports of watches marked immediate come by; RAX is the report's sequence there, or all ones where
    /// it was lost.
    public let reportPoint: Int

    /// Reads the filter's description of itself.
    /// - Parameters:
    ///   - image: what is written into the guest.
    ///   - data: where in it the shared data is (the agent header's `Data`).
    ///   - size: of all the memory that the agent takes, in bytes.
    public init(image: [UInt8], data: Int, size: Int) throws(PageTableFilterError) {
        guard data > 0, data <= image.count - Self.dataSize else { throw .malformed("its data lies outside of it") }
        func word(_ offset: Int) -> Int {
            (0..<4).reduce(0) { $0 | Int(image[data + offset + $1]) << (8 * $1) }
        }
        guard word(0) == Int(Self.version), word(4) == Self.dataSize else {
            throw .malformed("its data is of version \(word(0)) and \(word(4)) bytes long")
        }
        func table(_ offset: Int, _ slotSize: Int) throws(PageTableFilterError) -> Table {
            let table = Table(offset: word(offset), slots: word(offset + 4), slotSize: word(offset + 8))
            guard table.slotSize == slotSize, table.slots > 0, table.slots & (table.slots - 1) == 0,
                table.offset >= image.count, table.offset <= size,
                table.slots <= (size - table.offset) / slotSize
            else { throw .malformed("a table of it is not where tables can be") }
            return table
        }
        self.data = data
        writers = try table(0x08, Self.writerSize)
        watches = try table(0x14, Self.watchSize)
        ring = try table(0x20, Self.reportSize)
        probes = word(0x2c)
        reportPoint = word(0x30)
        guard (1...min(writers.slots, watches.slots)).contains(probes) else {
            throw .malformed("it probes \(probes) slots")
        }
        guard (1..<image.count).contains(reportPoint), image[reportPoint] == 0x90 else {
            throw .malformed("its report point is no NOP")
        }
    }

    /// Where a field of the shared data is.
    public func offset(of field: Field) -> Int { data + field.rawValue }
}

extension FixedWidthInteger {
    /// As the guest has it in memory.
    var littleEndianBytes: [UInt8] {
        (0..<Self.bitWidth / 8).map { UInt8(truncatingIfNeeded: self >> (8 * $0)) }
    }
}
