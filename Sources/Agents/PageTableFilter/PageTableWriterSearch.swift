import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// Finds out which of a kernel's instructions write its page tables, by watching entries that change.
///
/// The caller looks from time to time (`observe`), which stops nothing; puts debug registers where `sites` says; and
/// hands over the registers of each vCPU that stops there (`confirm`). Nothing here touches the guest.
public struct PageTableWriterSearch {
    /// A place to watch.
    public struct Site: Hashable, Sendable {
        /// Of the entry, 8-byte aligned.
        public var address: GuestVirtualAddress
        /// Where the entry lies.
        public var entry: GuestPhysicalAddress
        /// Whether the address is the self-map's.
        public var isSelfMap: Bool

        public var breakpoint: BreakpointSite { .access(address, length: 8) }
    }

    /// How many entries are remembered.
    public static let maximumEntries = 256
    /// How many tables are looked at more often than the others.
    static let busiestTables = 4

    private var snapshot: PageTableSnapshot
    private let catalog: PageTableWriterCatalog
    private let tableLimit: Int
    private var observed: [PageTableSnapshot.Change] = []
    private var counts: [GuestPhysicalAddress: Int] = [:]

    /// The instructions seen writing an entry, by the address behind each.
    public private(set) var confirmed: [GuestVirtualAddress: PageTableWriter] = [:]
    /// How often a vCPU stopped behind an instruction that is no candidate, or wrote elsewhere: readers, mostly.
    public private(set) var unexplainedStops = 0

    /// - Parameter space: the kernel's page tables, those of the System process.
    public init(
        _ space: AddressSpace, in physical: PhysicalMemory, catalog: PageTableWriterCatalog,
        tableLimit: Int = PageTableSnapshot.defaultLimit
    ) {
        snapshot = PageTableSnapshot(space, in: physical, limit: tableLimit)
        self.catalog = catalog
        self.tableLimit = tableLimit
    }

    /// Some tables are not looked at: there are more than the limit.
    public var isTruncated: Bool { snapshot.isTruncated }

    /// Compares the tables with what they held the last time.
    /// - Returns: how many entries have changed.
    @discardableResult
    public mutating func observe() -> Int { take(snapshot.update()) }

    /// The same for the few tables alone that changed most often until now: a matter of microseconds.
    /// - Returns: how many entries have changed.
    @discardableResult
    public mutating func observeBusiest() -> Int { take(snapshot.updateBusiest(Self.busiestTables)) }

    /// Looks for tables that were made since the beginning: in those nothing has been seen until now.
    public mutating func renew() {
        var new = PageTableSnapshot(snapshot.space, in: snapshot.physical, limit: tableLimit)
        new.takeChangeCounts(from: snapshot)
        snapshot = new
    }

    private mutating func take(_ changes: [PageTableSnapshot.Change]) -> Int {
        for change in changes {
            if let count = counts[change.place] {
                counts[change.place] = count + 1
            } else if observed.count < Self.maximumEntries {
                observed.append(change)
                counts[change.place] = 1
            }
        }
        return changes.count
    }

    /// The places to watch, the entries that changed most often first, each with all its addresses: the self-map's,
    /// then those of other mappings.
    /// - Parameter count: how many places there can be: the debug registers to be had.
    public func sites(_ count: Int) -> [Site] {
        guard count > 0 else { return [] }
        let aliases = PageTableAliases(snapshot.space, in: snapshot.physical)
        // A stable order, so that the answer depends on the guest alone.
        let entries = observed.sorted {
            (counts[$1.place] ?? 0, $0.place) < (counts[$0.place] ?? 0, $1.place)
        }.prefix(count)
        let mappings = aliases.writableMappings(of: Set(entries.map(\.place.page)))
        var sites: [Site] = []
        for entry in entries {
            if let address = aliases.selfMapAddress(ofEntryFor: entry.translates, level: entry.level) {
                sites.append(Site(address: address, entry: entry.place, isSelfMap: true))
            }
            let offset = entry.place.rawValue & 0xfff
            sites += (mappings[entry.place.page] ?? []).map {
                Site(address: $0 + offset, entry: entry.place, isSelfMap: false)
            }
        }
        return Array(sites.prefix(count))
    }

    /// Judges a stop after an access to a watched place.
    ///
    /// The instruction before RIP is the one that made the access: if it is a candidate, and its operand with these
    /// registers is the watched address, it writes page tables. One that may have changed the registers of its own
    /// address is not confirmed.
    /// - Parameter registers: of the vCPU that stopped.
    /// - Returns: the instruction; nil where none is confirmed by this stop.
    @discardableResult
    public mutating func confirm(_ registers: Registers, at site: Site) -> PageTableWriter? {
        guard registers.privilegeLevel == 0, let writer = catalog.candidates[GuestVirtualAddress(registers.rip)],
            !writer.changesItsAddress, writer.effectiveAddress(registers) == site.address
        else {
            unexplainedStops += 1
            return nil
        }
        confirmed[writer.end] = writer
        return writer
    }
}
