import GuestMemory

/// A change of a watched entry, as the filter saw it.
public struct PageTableReport: Hashable, Sendable {
    /// From 1 on.
    public var sequence: UInt64
    /// Behind the instruction that wrote.
    public var end: GuestVirtualAddress
    /// The entry's linear address by which it was written.
    public var address: GuestVirtualAddress
    public var old: UInt64
    public var new: UInt64
    /// The caller's number for the entry.
    public var watch: UInt32
    /// It came by the report point.
    public var isImmediate: Bool

    public init(
        sequence: UInt64, end: GuestVirtualAddress, address: GuestVirtualAddress, old: UInt64, new: UInt64,
        watch: UInt32, isImmediate: Bool
    ) {
        self.sequence = sequence
        self.end = end
        self.address = address
        self.old = old
        self.new = new
        self.watch = watch
        self.isImmediate = isImmediate
    }

    /// The bits whose change is reported: P, R/W, U/S, PS, the address, XD. Intel SDM volume 3, 4.5.4; the filter has
    /// them, too (`ENTRY_MATTERS`).
    public static let matters: UInt64 = 0x800f_ffff_ffff_f087
}

/// What the filter has counted.
public struct PageTableFilterCounts: Hashable, Sendable {
    /// Page-table writes that it performed.
    public var writes: UInt64
    /// Reports that were lost: what they were about must be looked at anew.
    public var lost: UInt64
    /// Interrupts from unknown places: the guest has lost a write. An error.
    public var unknown: UInt64
    /// Interrupts from programs' code. An error.
    public var fromUser: UInt64
    /// Where the last unknown interrupt returned to.
    public var lastUnknown: GuestVirtualAddress
}

/// Reads the filter's reports while the guest runs.
///
/// The ring lies in guest memory: it may hold anything. One call reads as many reports as there are slots at most.
public struct PageTableReportReader: Sendable {
    /// What one call has read.
    public struct Batch: Hashable, Sendable {
        /// In the order of their sequence.
        public var reports: [PageTableReport] = []
        /// To be written so that the filter may use the slots again; nil where nothing was read.
        public var acknowledgement: PageTableFilterWrite?
        /// The guest's numbers contradict the host's: somebody else wrote there.
        public var isCorrupt = false
    }

    private let layout: PageTableFilterLayout
    private let base: GuestVirtualAddress
    /// How many reports have been read.
    public private(set) var tail: UInt64 = 0

    /// - Parameter base: where the agent lies.
    public init(_ layout: PageTableFilterLayout, at base: GuestVirtualAddress) {
        self.layout = layout
        self.base = base
    }

    /// Reads what is there, up to a report that is still being written.
    public mutating func read(from memory: some TranslatedMemory) throws(MemoryError) -> Batch {
        var batch = Batch()
        let head = try load(layout.offset(of: .head), memory)
        let waiting = head &- tail
        guard waiting <= UInt64(layout.ring.slots) else {
            batch.isCorrupt = true
            return batch
        }
        for number in tail..<tail &+ waiting {
            let slot = layout.ring.slot(Int(truncatingIfNeeded: number))
            guard try load(slot, memory) == number &+ 1 else { break }
            let flags = try load(slot + 40, memory)
            batch.reports.append(
                PageTableReport(
                    sequence: number &+ 1, end: GuestVirtualAddress(try load(slot + 8, memory)),
                    address: GuestVirtualAddress(try load(slot + 16, memory)), old: try load(slot + 24, memory),
                    new: try load(slot + 32, memory), watch: UInt32(truncatingIfNeeded: flags),
                    isImmediate: flags >> 32 & 1 != 0))
        }
        guard !batch.reports.isEmpty else { return batch }
        tail &+= UInt64(batch.reports.count)
        batch.acknowledgement = PageTableFilterWrite(
            offset: layout.offset(of: .tail), bytes: tail.littleEndianBytes)
        return batch
    }

    /// What the filter has counted up to now.
    public func counts(from memory: some TranslatedMemory) throws(MemoryError) -> PageTableFilterCounts {
        PageTableFilterCounts(
            writes: try load(layout.offset(of: .writes), memory), lost: try load(layout.offset(of: .lost), memory),
            unknown: try load(layout.offset(of: .unknown), memory),
            fromUser: try load(layout.offset(of: .fromUser), memory),
            lastUnknown: GuestVirtualAddress(try load(layout.offset(of: .lastUnknown), memory)))
    }

    private func load(_ offset: Int, _ memory: some TranslatedMemory) throws(MemoryError) -> UInt64 {
        try memory.load(UInt64.self, at: base + UInt64(offset))
    }
}
