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
    private static let watchTime = Duration.milliseconds(50)
    private static let watchStops = 16
    /// After so many rounds without a new writer there are enough.
    private static let idleRounds = 3
    /// When there are enough, how often entries of interest are looked at whose change nobody had told, and how long
    /// such a one is watched.
    private static let lazyInterval = Duration.seconds(1)
    private static let lazyWatchTime = Duration.seconds(2)
    /// For how long one instruction is stopped before, and until when all of them are, before the rest of them waits
    /// for the next occasion.
    private static let exchangeTime = Duration.milliseconds(20)
    private static let eagerTime = Duration.seconds(3)
    /// How many places are considered, of the entries that change most often.
    private static let busiestSites = 16
    /// How many entries are watched at once. The other debug registers are for the power path.
    private static let watches = 2

    private var search: PageTableWriterSearch
    private let debugRegisters: DebugRegisterTable
    private let now: () -> Deadline
    private var sites: [PageTableWriterSearch.Site] = []
    /// Instructions that are stopped before, and those whose turn has yet to come.
    private var stopped: [PageTableWriter] = []
    private var exchanges: [PageTableWriter] = []
    private var isExchangesTurn = false
    private var eagerEnd: Deadline
    /// Entries that were watched already, and those of them that somebody came by at.
    private var tried: Set<GuestPhysicalAddress> = []
    private var busy: Set<GuestPhysicalAddress> = []
    private var watchEnd: Deadline
    private var nextLook: Deadline
    private var stops = 0
    /// Nobody came by at the entries that were watched last.
    private var wasFruitless = false
    private var known = 0
    private var roundsWithoutNews = 0

    init(
        _ kernel: WindowsKernel, _ debugRegisters: DebugRegisterTable,
        now: @escaping () -> Deadline = { ContinuousClock.now }
    ) throws(AgentError) {
        do throws(MemoryError) {
            let machine = debugRegisters.effects.machine
            let catalog = try PageTableWriterCatalog(of: kernel.image, in: kernel.memory) {
                _ = try? machine.runState()
            }
            search = PageTableWriterSearch(kernel.memory.space, in: kernel.memory.physical, catalog: catalog)
        } catch {
            throw .memory(error, doing: "looking for the instructions that write page tables")
        }
        self.debugRegisters = debugRegisters
        self.now = now
        watchEnd = now()
        nextLook = now()
        eagerEnd = now() + Self.eagerTime
        exchanges = search.exchanges
    }

    /// The instructions found so far.
    var writers: [PageTableWriter] { search.confirmed.values.sorted { $0.end < $1.end } }

    /// Several rounds have found nothing new, and who may pass by a watch has been looked at, too, if there was time
    /// for it. From then on only entries of interest are looked at.
    private(set) var isDone = false

    private var hasEnough: Bool {
        guard !search.confirmed.isEmpty, roundsWithoutNews >= Self.idleRounds else { return false }
        return exchanges.isEmpty || now() >= eagerEnd
    }

    /// Handles a vCPU that may have stopped for a watched entry.
    /// - Returns: whether it has.
    func handleAccess(_ vcpu: VCPU, _ registers: Registers) throws(DetourError) -> Bool {
        if let index = stopped.firstIndex(where: { $0.address.rawValue == registers.rip }) {
            // Whatever it is, it is known now, and need not be stopped before again.
            let writer = stopped.remove(at: index)
            if search.confirm(registers, before: writer) { roundsWithoutNews = 0 }
            try control { () throws(HypervisorError) in try debugRegisters.release(.entryWatch(writer.address)) }
            return true
        }
        for site in sites where debugRegisters.holds(.entryWatch(site.address)) {
            let count = search.confirmed.count
            guard search.confirm(registers, at: site) != nil else { continue }
            if search.confirmed.count > count { roundsWithoutNews = 0 }
            stops += 1
            busy.insert(site.entry)
            try control { () throws(HypervisorError) in
                _ = try debugRegisters.effects.settleAccess(of: vcpu, at: registers)
            }
            if stops >= Self.watchStops { try release() }
            return true
        }
        return false
    }

    /// Goes on, and says when to come again.
    ///
    /// A writer that was not at work meanwhile is not known yet. Where an entry of interest has changed afterwards, it is
    /// watched, and the instructions that exchange are stopped before once more: who changes it again is known then.
    /// - Parameters:
    ///   - mayWatch: whether debug registers may be taken now.
    ///   - isOfInterest: whether an entry's changes have to be known.
    func tick(
        mayWatch: Bool, isOfInterest: (GuestPhysicalAddress) -> Bool
    ) throws(DetourError) -> Deadline? {
        let time = now()
        if !sites.isEmpty || !stopped.isEmpty {
            if time < watchEnd, mayWatch { return watchEnd }
            try set { () throws(HypervisorError) in try releaseSites() }
        }
        if hasEnough { isDone = true }
        if time >= nextLook { try isDone ? lookLazily(time, mayWatch, isOfInterest) : look(time, mayWatch) }
        return sites.isEmpty && stopped.isEmpty ? nextLook : watchEnd
    }

    private func look(_ time: Deadline, _ mayWatch: Bool) throws(DetourError) {
        nextLook = time + Self.interval
        search.observe()
        // Where nobody comes by, those who write may be at work in tables that were not there at the beginning.
        if wasFruitless { search.renew() }
        wasFruitless = false
        // What is mapped for a moment only is seen by who looks often.
        let end = now() + Self.burst
        while now() < end { _ = search.hasSeenChanges ? search.observeBusiest() : search.observe() }
        isExchangesTurn.toggle()
        if mayWatch { try isExchangesTurn && !exchanges.isEmpty ? stopBeforeExchanges() : watchBusiest() }
    }

    private func lookLazily(
        _ time: Deadline, _ mayWatch: Bool, _ isOfInterest: (GuestPhysicalAddress) -> Bool
    ) throws(DetourError) {
        nextLook = time + (exchanges.isEmpty ? Self.lazyInterval : Self.interval)
        isExchangesTurn.toggle()
        if isExchangesTurn, mayWatch, !exchanges.isEmpty { return try stopBeforeExchanges() }
        let changes = search.changes(where: isOfInterest)
        // Somebody unknown is at work: who was not seen may be seen now.
        if changes.isEmpty { return }
        if exchanges.isEmpty { exchanges = search.exchanges }
        if mayWatch {
            try watch(
                search.sites(of: changes, Self.watches), for: exchanges.isEmpty ? Self.lazyWatchTime : Self.watchTime)
        }
    }

    private func watchBusiest() throws(DetourError) {
        let all = search.sites(Self.busiestSites)
        // What was mapped once and stays is of no use again; what is written all the time is.
        var chosen = all.filter { !tried.contains($0.entry) }
        if chosen.isEmpty { chosen = all.filter { busy.contains($0.entry) } }
        chosen = Array(chosen.prefix(Self.watches))
        tried.formUnion(chosen.map(\.entry))
        try watch(chosen, for: Self.watchTime)
    }

    private func watch(_ chosen: [PageTableWriterSearch.Site], for time: Duration) throws(DetourError) {
        let chosen = chosen.prefix(freeRegisters)
        if chosen.isEmpty { return }
        try set { () throws(HypervisorError) in
            for site in chosen where try debugRegisters.acquire(.entryWatch(site.address), site.breakpoint) {
                sites.append(site)
            }
        }
        stops = 0
        watchEnd = now() + time
    }

    /// Has the next instructions that exchange stopped before, once each.
    private func stopBeforeExchanges() throws(DetourError) {
        let chosen = exchanges.prefix(min(freeRegisters, Self.watches))
        exchanges.removeFirst(chosen.count)
        try set { () throws(HypervisorError) in
            for writer in chosen
            where try debugRegisters.acquire(.entryWatch(writer.address), .execution(writer.address)) {
                stopped.append(writer)
            }
        }
        watchEnd = now() + Self.exchangeTime
    }

    private var freeRegisters: Int { debugRegisters.registers.count { $0 == nil } }

    /// Changes what is set, while the machine stands.
    private func set(_ body: () throws(HypervisorError) -> Void) throws(DetourError) {
        try control { () throws(HypervisorError) in try debugRegisters.effects.withPaused(body) }
    }

    /// Stops watching. The machine stands.
    func release() throws(DetourError) {
        try control { () throws(HypervisorError) in try releaseSites() }
    }

    private func releaseSites() throws(HypervisorError) {
        for site in sites { try debugRegisters.release(.entryWatch(site.address)) }
        for writer in stopped { try debugRegisters.release(.entryWatch(writer.address)) }
        stopped = []
        if !sites.isEmpty {
            // A round in which nobody came by says nothing.
            if search.confirmed.count == known, stops > 0 { roundsWithoutNews += 1 }
            wasFruitless = stops == 0
            known = search.confirmed.count
        }
        sites = []
    }
}
