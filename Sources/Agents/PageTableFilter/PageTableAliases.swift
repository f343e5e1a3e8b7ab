import GuestMemory
import X86

/// The linear addresses at which a kernel can write its own page tables.
///
/// Windows reaches them through an entry of the top table that refers to that table itself (the self-map); others map
/// all of physical memory. Both are looked for: a guest that has a self-map need not write through it.
public struct PageTableAliases {
    /// How many entries of tables are looked at for one search; a mapping of all physical memory in large pages takes
    /// a few thousand.
    public static let defaultLimit = 1 << 22

    let physical: PhysicalMemory
    let space: AddressSpace
    /// The entry of the top table that refers to that table, of its upper half.
    public let selfMapIndex: Int?

    public init(_ space: AddressSpace, in physical: PhysicalMemory) {
        self.physical = physical
        self.space = space
        let root = space.root & PageTableEntry.addressMask
        selfMapIndex = (256..<512).first { index in
            let place = GuestPhysicalAddress(root) + UInt64(index) * 8
            guard space.tableLevels != nil, let entry = try? physical.load(UInt64.self, at: place) else { return false }
            let found = PageTableEntry(entry)
            return found.isPresent && !found.isLargePage && found.address == root
        }
    }

    /// Where the self-map has the entry of `level` that translates `address`; nil without a self-map.
    public func selfMapAddress(ofEntryFor address: GuestVirtualAddress, level: Int) -> GuestVirtualAddress? {
        guard let selfMapIndex, let levels = space.tableLevels, (1...levels).contains(level) else { return nil }
        let bits = space.mode.linearAddressBits
        var result = address.rawValue
        for _ in 0..<level {
            // One level up: the entry's number among all is the address without its page offset.
            let offset = (result & ((1 << bits) &- 1)) >> 9 & ~7
            result = space.linear(0, index: selfMapIndex, level: levels) &+ offset
        }
        return GuestVirtualAddress(result)
    }

    /// The addresses of the kernel's half, but for the self-map's, at which each of some pages can be written.
    /// - Parameter limit: how many entries of tables are looked at at most.
    /// - Returns: for each page its addresses in ascending order; nothing for pages that have none.
    public func writableMappings(
        of pages: Set<GuestPhysicalAddress>, limit: Int = defaultLimit
    ) -> [GuestPhysicalAddress: [GuestVirtualAddress]] {
        guard let levels = space.tableLevels, !pages.isEmpty else { return [:] }
        var found: [GuestPhysicalAddress: [GuestVirtualAddress]] = [:]
        let sorted = pages.sorted()
        var left = limit
        // Depth first: an ascending order, and no more tables waiting than there are levels.
        var path: [(entries: [UInt64], translates: UInt64, index: Int)] = []
        func enter(_ table: UInt64, _ translates: UInt64, from index: Int) {
            // One that is not in RAM leads nowhere.
            let entries = PageTableSnapshot.entries(of: GuestPhysicalAddress(table), in: physical)
            path.append((entries ?? [], translates, index))
        }
        enter(space.root & PageTableEntry.addressMask, 0, from: 256)
        while let (entries, translates, start) = path.last {
            let level = levels - path.count + 1
            // Most entries are empty: those are passed over at once.
            var index = start
            while index < entries.count, left > 0, entries[index] == 0 {
                index += 1
                left -= 1
            }
            guard index < entries.count, left > 0 else {
                path.removeLast()
                continue
            }
            left -= 1
            path[path.count - 1].index = index + 1
            guard !(level == levels && index == selfMapIndex) else { continue }
            let entry = PageTableEntry(entries[index])
            guard entry.isPresent, entry.isWritable else { continue }
            let linear = space.linear(translates, index: index, level: level)
            guard level == 1 || (level <= 3 && entry.isLargePage) else {
                enter(entry.address, linear, from: 0)
                continue
            }
            let size = UInt64(4096) << UInt64(9 * (level - 1))
            let first = GuestPhysicalAddress(entry.address & ~(size - 1))
            // The first page at or behind the mapping's start, by bisection.
            var low = 0
            var high = sorted.count
            while low < high {
                let middle = (low + high) / 2
                if sorted[middle] < first { low = middle + 1 } else { high = middle }
            }
            while low < sorted.count, sorted[low].rawValue - first.rawValue < size {
                found[sorted[low], default: []].append(
                    GuestVirtualAddress(linear) + (sorted[low].rawValue - first.rawValue))
                low += 1
            }
        }
        return found
    }
}
