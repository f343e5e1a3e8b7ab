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

    /// Compares the tables with what they held the last time.
    /// - Returns: the entries that have changed, of those that the caller is interested in.
    public mutating func changes(
        where isOfInterest: (GuestPhysicalAddress) -> Bool
    ) -> [PageTableSnapshot.Change] {
        let all = snapshot.update()
        _ = take(all)
        return all.filter { isOfInterest($0.place) }
    }

    /// The places to watch, the entries that changed most often first, each with all its addresses: the self-map's,
    /// then those of other mappings.
    /// - Parameter count: how many places there can be: the debug registers to be had.
    public func sites(_ count: Int) -> [Site] {
        // A stable order, so that the answer depends on the guest alone.
        let entries = observed.sorted {
            (counts[$1.place] ?? 0, $0.place) < (counts[$0.place] ?? 0, $1.place)
        }
        return sites(of: entries, count)
    }

    /// The places where these entries can be watched, the first ones first.
    /// - Parameter count: how many places there can be.
    public func sites(of changes: [PageTableSnapshot.Change], _ count: Int) -> [Site] {
        guard count > 0 else { return [] }
        let entries = changes.prefix(count)
        let aliases = PageTableAliases(snapshot.space, in: snapshot.physical)
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

    /// Some entry has changed since the beginning.
    public var hasSeenChanges: Bool { !observed.isEmpty }

    /// The candidates that exchange, in order: a hypervisor's watch may pass by the accesses of such instructions (QEMU
    /// 7.2's does on several vCPUs), so they are confirmed when they are about to execute.
    public var exchanges: [PageTableWriter] {
        catalog.candidates.values.filter { $0.kind != .move && !$0.changesItsAddress && confirmed[$0.end] == nil }
            .sorted { $0.end < $1.end }
    }

    /// Judges a stop before a candidate: it writes page tables if its operand with these registers lies in one.
    /// - Parameter registers: of the vCPU that stopped.
    /// - Returns: whether the candidate is confirmed by this stop.
    public mutating func confirm(_ registers: Registers, before writer: PageTableWriter) -> Bool {
        let memory = VirtualMemory(physical: snapshot.physical, space: snapshot.space)
        guard registers.privilegeLevel == 0, registers.rip == writer.address.rawValue,
            let place = try? memory.translate(writer.effectiveAddress(registers)).physical,
            let table = snapshot.tables.first(where: { $0.place == place.page })
        else { return false }
        confirmed[writer.end] = writer
        // Where one is at work others may be.
        let index = Int(place.rawValue & 0xfff) / 8
        let translates = GuestVirtualAddress(
            snapshot.space.linear(table.translates, index: index, level: table.level))
        _ = take([
            PageTableSnapshot.Change(place: place, translates: translates, level: table.level, before: 0, after: 0)
        ])
        return true
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
