import GuestMemory
import X86

/// The page-table entries that some pages of the kernel's are translated by, and where the kernel writes them.
struct WatchedTranslations {
    /// One entry of a table.
    struct Entry: Hashable {
        var place: GuestPhysicalAddress
        /// 1 for the entry of a 4 KiB page.
        var level: Int
        /// The watched page, or the first of those that the entry maps.
        var page: GuestVirtualAddress
        /// All linear addresses that it can be written at.
        var addresses: [GuestVirtualAddress]
    }

    /// In the order of pages, from the top table down; an entry that several pages have in common is there once.
    private(set) var entries: [Entry] = []

    /// Looks the entries up as they are now. Pages of the lower half belong to a process, and are left out.
    init(of pages: some Sequence<GuestVirtualAddress>, _ space: AddressSpace, in physical: PhysicalMemory) {
        guard let levels = space.tableLevels else { return }
        var known: Set<GuestPhysicalAddress> = []
        for page in pages.sorted() where page.rawValue >> 63 == 1 && space.mode.isCanonical(page) {
            var table = space.root & PageTableEntry.addressMask
            for level in (1...levels).reversed() {
                let index = page.rawValue >> UInt64(12 + 9 * (level - 1)) & 511
                let place = GuestPhysicalAddress(table + index * 8)
                guard let word = try? physical.load(UInt64.self, at: place) else { break }
                if known.insert(place).inserted {
                    entries.append(Entry(place: place, level: level, page: page.page, addresses: []))
                }
                let entry = PageTableEntry(word)
                // Below an entry that leads nowhere there is nothing yet.
                guard entry.isPresent, !(entry.isLargePage && level <= 3) else { break }
                table = entry.address
            }
        }
        let aliases = PageTableAliases(space, in: physical)
        let mappings = aliases.writableMappings(of: Set(entries.map(\.place.page)))
        for index in entries.indices {
            let entry = entries[index]
            let own = aliases.selfMapAddress(ofEntryFor: entry.page, level: entry.level)
            let others = (mappings[entry.place.page] ?? []).map { $0 + (entry.place.rawValue & 0xfff) }
            entries[index].addresses = (own.map { [$0] } ?? []) + others
        }
    }
}
