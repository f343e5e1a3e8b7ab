import GuestMemory
import X86

/// The page tables of a kernel's half of an address space, as they were at one moment.
///
/// The guest is not stopped: entries read one after another are of slightly different instants, each read in one
/// piece. Tables are hostile input: each is read once however often it is referred to, so that one that refers to
/// itself, or to garbage, costs no more than any other, and there is a limit on their number.
public struct PageTableSnapshot {
    /// An entry that was not the same at two moments.
    public struct Change: Hashable, Sendable {
        /// Where the entry lies.
        public var place: GuestPhysicalAddress
        /// The first linear address that it translates.
        public var translates: GuestVirtualAddress
        /// 1 for a page's entry, 2 to 5 for tables' entries and large pages.
        public var level: Int
        public var before: UInt64
        public var after: UInt64
    }

    struct Table: Sendable {
        var place: GuestPhysicalAddress
        /// The first linear address that the table translates, by the way that led to it first.
        var translates: UInt64
        /// Of its entries.
        var level: Int
        var entries: [UInt64]
        /// How many changes were seen in it.
        var changes = 0
    }

    /// 64 MiB of tables, which map 32 GiB in pages of 4 KiB.
    public static let defaultLimit = 1 << 14

    public let physical: PhysicalMemory
    public let space: AddressSpace
    /// Not all tables were read: there are more than the limit.
    public private(set) var isTruncated = false
    var tables: [Table] = []

    /// Reads the tables of the upper half that are there now.
    /// - Parameters:
    ///   - space: of 4 or 5 levels; in another mode there is nothing to read.
    ///   - limit: how many tables are read at most.
    public init(_ space: AddressSpace, in physical: PhysicalMemory, limit: Int = defaultLimit) {
        self.physical = physical
        self.space = space
        guard let levels = space.tableLevels else { return }
        var seen: Set<UInt64> = []
        var waiting: [(place: UInt64, translates: UInt64, level: Int)] = [
            (space.root & PageTableEntry.addressMask, 0, levels)
        ]
        var next = 0
        while next < waiting.count {
            let (place, translates, level) = waiting[next]
            next += 1
            // The self-map leads back to tables that were seen.
            guard seen.insert(place).inserted else { continue }
            guard tables.count < limit else {
                isTruncated = true
                return
            }
            guard let entries = Self.entries(of: GuestPhysicalAddress(place), in: physical) else { continue }
            tables.append(
                Table(place: GuestPhysicalAddress(place), translates: translates, level: level, entries: entries))
            guard level > 1 else { continue }
            let isRoot = level == levels
            for index in (isRoot ? 256 : 0)..<512 {
                let entry = PageTableEntry(entries[index])
                guard entry.isPresent, !(entry.isLargePage && level <= 3), entry.address != waiting[0].place else {
                    continue
                }
                waiting.append((entry.address, space.linear(translates, index: index, level: level), level - 1))
            }
        }
    }

    /// Takes over how many changes were seen in the tables that an earlier one has as well.
    mutating func takeChangeCounts(from earlier: PageTableSnapshot) {
        let counts = Dictionary(earlier.tables.map { ($0.place, $0.changes) }, uniquingKeysWith: max)
        for index in tables.indices { tables[index].changes = counts[tables[index].place] ?? 0 }
    }

    /// How many tables were read.
    public var tableCount: Int { tables.count }

    /// Reads the same tables again, and takes what they hold now for the next time.
    /// - Returns: the entries of the upper half that are another than before in more than the bits that processors
    ///   set (A, D).
    public mutating func update() -> [Change] { update(Array(tables.indices)) }

    /// The same for those tables alone in which most changes were seen: what is mapped for a moment only is found by
    /// looking often.
    /// - Parameter count: how many tables.
    public mutating func updateBusiest(_ count: Int) -> [Change] {
        let busy = tables.indices.filter { tables[$0].changes > 0 }
        return update(Array(busy.sorted { tables[$0].changes > tables[$1].changes }.prefix(count)))
    }

    private mutating func update(_ numbers: [Int]) -> [Change] {
        var changes: [Change] = []
        for number in numbers {
            let table = tables[number]
            guard let now = Self.entries(of: table.place, in: physical), now != table.entries else { continue }
            for index in (table.level == space.tableLevels ? 256 : 0)..<512
            where (now[index] ^ table.entries[index]) & ~PageTableEntry.processorsBits != 0 {
                changes.append(
                    Change(
                        place: table.place + UInt64(index) * 8,
                        translates: GuestVirtualAddress(
                            space.linear(table.translates, index: index, level: table.level)),
                        level: table.level, before: table.entries[index], after: now[index]))
            }
            tables[number].entries = now
            tables[number].changes += 1
        }
        return changes
    }

    /// nil where the table is not in RAM.
    static func entries(of table: GuestPhysicalAddress, in physical: PhysicalMemory) -> [UInt64]? {
        var entries = [UInt64](repeating: 0, count: 512)
        do throws(MemoryError) {
            try entries.withUnsafeMutableBufferPointer { (buffer) throws(MemoryError) in
                try physical.read(at: table, into: UnsafeMutableRawBufferPointer(buffer))
            }
        } catch {
            return nil
        }
        return entries
    }
}

extension AddressSpace {
    /// How many levels of tables with 512 entries; nil in modes of 32 bits.
    var tableLevels: Int? {
        switch mode {
        case .fourLevel: 4
        case .fiveLevel: 5
        case .none, .legacy32, .pae: nil
        }
    }

    /// The first linear address, canonical, that an entry translates.
    func linear(_ table: UInt64, index: Int, level: Int) -> UInt64 {
        let address = table | UInt64(index) << UInt64(12 + 9 * (level - 1))
        let unused = Int64(64 &- mode.linearAddressBits)
        return UInt64(bitPattern: (Int64(bitPattern: address) &<< unused) &>> unused)
    }
}

extension PageTableEntry {
    /// A and D, which processors set. Intel SDM volume 3, 4.8.
    static let processorsBits: UInt64 = 1 << 5 | 1 << 6
}
