import Agents
import Detours
import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// Finds the instructions that write page tables, in a running guest: looks which entries change, watches some of them
/// for a moment, and takes down who wrote them.
///
/// The guest is stopped once for each access to a watched entry, and only while something is found that way.
final class PageTableWriterHunt {
    /// How often the tables are looked at.
    private static let interval = Duration.milliseconds(20)
    /// For how long, each time.
    private static let burst = Duration.milliseconds(4)
    /// How long, and for how many accesses, entries are watched at a time.
    private static let watchTime = Duration.milliseconds(100)
    private static let watchStops = 16
    /// After so many rounds without a new writer there are enough.
    private static let idleRounds = 3
    /// How many entries are watched at once. The other debug registers are for the power path.
    private static let watches = 2

    private var search: PageTableWriterSearch
    private let debugRegisters: DebugRegisterTable
    private let now: () -> Deadline
    private var sites: [PageTableWriterSearch.Site] = []
    /// Entries at which somebody came by. When one is watched at which nobody does, they are watched again: there can
    /// be hundreds that change no more, and few that do.
    private var tried: Set<GuestPhysicalAddress> = []
    /// Entries at which nobody came by. When all others were watched, it begins anew.
    private var idle: Set<GuestPhysicalAddress> = []
    private var watchEnd: Deadline
    private var nextLook: Deadline
    private var stops = 0
    private var known = 0
    private var roundsWithoutNews = 0
    /// Nobody came by at what was watched last.
    private var wasFruitless = false

    init(
        _ kernel: WindowsKernel, _ debugRegisters: DebugRegisterTable,
        now: @escaping () -> Deadline = { ContinuousClock.now }
    ) throws(AgentError) {
        do throws(MemoryError) {
            let catalog = try PageTableWriterCatalog(of: kernel.image, in: kernel.memory)
            search = PageTableWriterSearch(kernel.memory.space, in: kernel.memory.physical, catalog: catalog)
        } catch {
            throw .memory(error, doing: "looking for the instructions that write page tables")
        }
        self.debugRegisters = debugRegisters
        self.now = now
        watchEnd = now()
        nextLook = now()
    }

    /// The instructions found so far.
    var writers: [PageTableWriter] { search.confirmed.values.sorted { $0.end < $1.end } }

    /// Several rounds have found nothing new.
    var isDone: Bool { !search.confirmed.isEmpty && roundsWithoutNews >= Self.idleRounds }

    /// Handles a vCPU that may have stopped for a watched entry.
    /// - Returns: whether it has.
    func handleAccess(_ vcpu: VCPU, _ registers: Registers) throws(DetourError) -> Bool {
        for site in sites where debugRegisters.holds(.entryWatch(site.address)) {
            let count = search.confirmed.count
            guard search.confirm(registers, at: site) != nil else { continue }
            if search.confirmed.count > count { roundsWithoutNews = 0 }
            stops += 1
            try control { () throws(HypervisorError) in try debugRegisters.effects.settleAccess(of: vcpu) }
            if stops >= Self.watchStops { try release() }
            return true
        }
        return false
    }

    /// Goes on, and says when to come again.
    /// - Parameter mayWatch: whether debug registers may be taken now.
    func tick(mayWatch: Bool) throws(DetourError) -> Deadline? {
        let time = now()
        if !sites.isEmpty {
            if time < watchEnd, mayWatch { return watchEnd }
            try control { () throws(HypervisorError) in
                try debugRegisters.effects.withPaused { () throws(HypervisorError) in try releaseSites() }
            }
        }
        if isDone { return nil }
        if time >= nextLook {
            nextLook = time + Self.interval
            // What is mapped for a moment only is seen by who looks often.
            search.observe()
            // Where nobody comes by, those who write may be at work in tables that were not there at the beginning.
            if sites.isEmpty, wasFruitless { search.renew() }
            let end = now() + Self.burst
            while now() < end { search.observeBusiest() }
            if mayWatch { try watch() }
        }
        return sites.isEmpty ? nextLook : watchEnd
    }

    private func watch() throws(DetourError) {
        let free = debugRegisters.registers.count { $0 == nil }
        let all = search.sites(PageTableWriterSearch.maximumEntries)
        func candidates() -> [PageTableWriterSearch.Site] {
            all.filter { !tried.contains($0.entry) && !idle.contains($0.entry) }
        }
        if candidates().isEmpty { tried = [] }
        if candidates().isEmpty { idle = [] }
        let chosen = candidates().prefix(min(free, Self.watches))
        if chosen.isEmpty { return }
        try control { () throws(HypervisorError) in
            try debugRegisters.effects.withPaused { () throws(HypervisorError) in
                for site in chosen where try debugRegisters.acquire(.entryWatch(site.address), site.breakpoint) {
                    sites.append(site)
                }
            }
        }
        stops = 0
        watchEnd = now() + Self.watchTime
    }

    /// Stops watching. The machine stands.
    func release() throws(DetourError) {
        try control { () throws(HypervisorError) in try releaseSites() }
    }

    private func releaseSites() throws(HypervisorError) {
        for site in sites { try debugRegisters.release(.entryWatch(site.address)) }
        if !sites.isEmpty {
            // A round in which nobody came by says nothing.
            if search.confirmed.count == known, stops > 0 { roundsWithoutNews += 1 }
            known = search.confirmed.count
            wasFruitless = stops == 0
            if stops > 0 {
                tried.formUnion(sites.map(\.entry))
            } else {
                idle.formUnion(sites.map(\.entry))
                tried = []
            }
        }
        sites = []
    }
}
