import Agents
import Detours
import GuestMemory
import HypervisorInterface
import PowerTransitions
import Protections
import WindowsGuest
import X86

/// What Vigil has placed in the guest beside the detour, and takes out again before the guest goes down.
///
/// It lends threads to the agents: callers of the power function that wait anyway, and where there are none, whichever
/// thread makes the next system call.
final class Deployment: TransitionParticipant {
    /// A thread that was borrowed at a system call.
    private struct Borrowed {
        var slot: Int
        var thread: GuestVirtualAddress
    }

    /// How long a borrowed thread sleeps at a time while it is kept.
    private static let nap = Duration.milliseconds(1)

    let agents: AgentManager
    let protections: ProtectionWatch
    /// The agent that is told what to look at, and which of the kernel's instructions to replace.
    private let filter: PageTableFilterAgent?
    private let kernel: WindowsKernel
    private var hunt: PageTableWriterHunt?
    /// Where the filter's changes are told at once; nil where that was not asked for.
    private let reportPoint: ReportPointWatch?
    /// What the filter watches.
    private var filteredPages: Set<GuestVirtualAddress> = []
    /// Whether agents are taken out before a transition. Without that, the guest goes down with them in it.
    private let withdraws: Bool
    private let detour: PatchlessDetour
    private let callers: CallerReader
    /// Where threads are borrowed: KiSystemServiceRepeat.
    private let dispatcher: GuestVirtualAddress?
    /// Where a guest comes by that crashes: KeBugCheck2, or KeBugCheckEx.
    private let bugCheck: GuestVirtualAddress?
    private let report: (EngineEvent) -> Void
    private var borrowed: [Borrowed] = []
    /// The transitions of requests that are under way.
    private var requests: [RequestID: Transition] = [:]
    /// The host has said that the machine goes down.
    private var isHostGoingDown = false

    init(
        agents: AgentManager, filter: PageTableFilterAgent?, kernel: WindowsKernel,
        protections: ProtectionWatch, withdraws: Bool, reportsAtOnce: Bool, detour: PatchlessDetour,
        callers: CallerReader, dispatcher: GuestVirtualAddress?,
        bugCheck: GuestVirtualAddress?, report: @escaping (EngineEvent) -> Void
    ) {
        self.agents = agents
        self.protections = protections
        self.filter = filter
        self.kernel = kernel
        self.withdraws = withdraws
        self.detour = detour
        self.callers = callers
        self.dispatcher = dispatcher
        self.bugCheck = bugCheck
        self.report = report
        reportPoint =
            reportsAtOnce ? ReportPointWatch(detour.debugRegisters, warn: { report(.warning($0)) }) : nil
    }

    private var effects: GuestEffects { detour.effects }
    private var debugRegisters: DebugRegisterTable { detour.debugRegisters }

    // MARK: The power path

    private var isInTransition: Bool { !requests.isEmpty || isHostGoingDown }

    func begins(_ id: RequestID, _ transition: Transition) throws(DetourError) {
        requests[id] = transition
        try hunt?.release()
        try reportPoint?.release()
        guard withdraws else { return }
        protections.begins(id, transition)
        try attempt { () throws(AgentError) in try agents.suspend() }
        if agents.withdrawalPlace == .systemCall { try lookForThread() }
    }

    var isOutstanding: Bool { withdraws && !requests.isEmpty && agents.isOutstanding }

    var waitsUntil: Duration { agents.deadlines.withdrawal }

    func nextCall() throws(DetourError) -> GuestCall? { try nextCall(from: .powerCall) }

    private func nextCall(from place: BorrowingPlace) throws(DetourError) -> GuestCall? {
        try attempt { () throws(AgentError) in try agents.nextCall(from: place) } ?? nil
    }

    func sent(slot: Int?) {
        if let slot { agents.didSend(slot: slot) } else { agents.couldNotSend() }
    }

    func returned(slot: Int, _ registers: Registers) throws(DetourError) {
        try attempt { () throws(AgentError) in try agents.returned(slot: slot, registers) }
        // The filter may have come in, or gone out, in this very stop.
        _ = try followReportPoint()
    }

    func givesUp() throws(DetourError) {
        try attempt { () throws(AgentError) in
            try agents.giveUp(because: "the power transition did not wait any longer")
        }
    }

    func lets(_ id: RequestID) throws(DetourError) {
        // Whoever is let in without having waited: nothing that could do harm is behind it.
        if isOutstanding { try givesUp() }
        if let transition = requests[id] { protections.lets(transition) }
        guard withdraws, !agents.isOutstanding else { return }
        try control { () throws(HypervisorError) in try debugRegisters.release(.bugCheck) }
    }

    func ends(_ result: TransitionResult) throws(DetourError) {
        requests = [:]
        protections.ends()
        if isHostGoingDown { return }
        agents.resume()
        // Where the machine stands at the call's return already, it need not be paused for this.
        if [.refused, .resumed, .returned].contains(result) { try lookForThread() }
    }

    // MARK: The host

    /// Something happened to the machine as a whole.
    func handle(_ event: HostEvent) { protections.handle(event) }

    /// The host tells what it does with the machine: in any order, twice, or not at all.
    func handle(_ notice: PowerNotice) throws(DetourError) {
        switch (notice, isHostGoingDown) {
        case (.resume, false):
            report(.warning("the host says that the machine is back, but never said that it was going down"))
        case (.resume, true):
            isHostGoingDown = false
            if requests.isEmpty { agents.resume() }
        case (.sleep, true), (.shutDown, true), (.terminating, true):
            report(.warning("the host says once more that the machine goes down (\(notice.rawValue))"))
        case (.sleep, false), (.shutDown, false), (.terminating, false):
            isHostGoingDown = true
            try whilePaused { () throws(AgentError) in try agents.suspend() }
        }
    }

    // MARK: Wishes

    /// Asks for an agent to be in the guest, or not to be. The page-table filter is deployed when it is known which
    /// instructions it is to replace.
    func want(_ name: String, _ isWanted: Bool) throws(AgentError) {
        if let filter, name == filter.name, isWanted {
            if !agents.allowVisiblePatches { throw .visiblePatches(agent: name) }
            if hunt == nil { hunt = try PageTableWriterHunt(kernel, debugRegisters) }
            if filter.writers.isEmpty { return }
        }
        try agents.want(name, isWanted)
    }

    private func goOnHunting() throws(DetourError) -> Deadline? {
        guard let filter, let hunt else { return nil }
        let due = try hunt.tick(mayWatch: !isInTransition, isOfInterest: filter.isWatching)
        if hunt.isDone, hunt.writers.count > filter.writers.count, !isInTransition {
            let isFirst = filter.writers.isEmpty
            filter.writers = hunt.writers
            // One that is deployed is taken out first, and comes back with all of them.
            try whilePaused { () throws(AgentError) in
                if !isFirst { try agents.want(filter.name, false) }
                try agents.want(filter.name, true)
            }
        }
        return due
    }

    /// Tells the filter which pages are protected; where none are, it looks after the kernel's own code.
    private func updateFilter() throws(DetourError) {
        guard let filter else { return }
        var pages = protections.watchedPages
        if pages.isEmpty { pages = residentCode }
        if pages == filteredPages { return }
        filteredPages = pages
        let immediate = reportPoint == nil ? [] : pages
        try attempt { () throws(AgentError) in try filter.watch(pages, immediate: immediate) }
    }

    /// The pages of the kernel's code that are not paged out: sections whose names begin with PAGE may be.
    private lazy var residentCode: Set<GuestVirtualAddress> = {
        var pages: Set<GuestVirtualAddress> = []
        for section in kernel.image.sections
        where section.isExecutable && !section.isDiscardable && !section.name.hasPrefix("PAGE") {
            let start = kernel.image.address(rva: section.rva).page
            for offset in stride(from: 0, to: UInt64(section.virtualSize), by: 0x1000) { pages.insert(start + offset) }
        }
        return pages
    }()

    // MARK: Threads

    /// Handles a vCPU that stands where something of this was waited for.
    /// - Returns: false where it has nothing to do with this.
    func handleStop(_ vcpu: VCPU, _ registers: Registers) throws(DetourError) -> Bool {
        if let holder = detour.returningHolder(registers),
            let index = borrowed.firstIndex(where: { $0.slot == holder.slot })
        {
            let thread = callers.caller(registers).thread
            // One that cannot be read, now or when it was borrowed, is believed.
            guard
                [borrowed[index].thread, GuestVirtualAddress(0)].contains(thread)
                    || borrowed[index].thread.rawValue == 0
            else { return false }
            try handleArrival(of: holder, at: index, vcpu, registers)
            return true
        }
        if let dispatcher, registers.rip == dispatcher.rawValue, debugRegisters.holds(.injection) {
            try borrow(vcpu, registers)
            return true
        }
        if let bugCheck, registers.rip == bugCheck.rawValue, debugRegisters.holds(.bugCheck) {
            try handleBugCheck()
            return true
        }
        if let reportPoint, reportPoint.isArrival(registers) {
            try handleReport(vcpu, reportPoint)
            return true
        }
        return try handleAccess(vcpu, registers)
    }

    /// A vCPU has changed the translation of a watched page, and has not gone on yet.
    private func handleReport(_ vcpu: VCPU, _ reportPoint: ReportPointWatch) throws(DetourError) {
        if let filter {
            filter.standingReports = try reportPoint.standingReports()
            defer { filter.standingReports = [] }
            try attempt { () throws(AgentError) in try agents.hear(filter.name) }
        }
        try reportPoint.stepOver(vcpu)
    }

    /// Handles a vCPU that may have stopped because of a page-table entry that is watched.
    /// - Returns: false where it has nothing to do with this.
    func handleAccess(_ vcpu: VCPU, _ registers: Registers) throws(DetourError) -> Bool {
        try hunt?.handleAccess(vcpu, registers) ?? false
    }

    /// Borrows the thread that makes a system call on this vCPU.
    private func borrow(_ vcpu: VCPU, _ registers: Registers) throws(DetourError) {
        // One thread is enough, and others shall not be stopped any more. The next tick looks for another one, if this
        // one cannot be had.
        try control { () throws(HypervisorError) in try debugRegisters.release(.injection) }
        guard registers.interruptsEnabled, registers.control.cr8 == 0, registers.privilegeLevel == 0 else { return }
        guard let call = try nextCall(from: .systemCall) else { return }
        do throws(DetourError) {
            let holder = try detour.borrow(vcpu, registers, for: call)
            agents.didSend(slot: holder.slot)
            borrowed.append(Borrowed(slot: holder.slot, thread: callers.caller(registers).thread))
        } catch {
            agents.couldNotSend()
            if case .hypervisor = error { throw error }
            report(.warning("a thread could not be borrowed for an agent: \(error)"))
        }
    }

    /// A borrowed thread is back: it makes the next call, waits for one, or gets its registers back.
    private func handleArrival(
        of holder: PatchlessDetour.Holder, at index: Int, _ vcpu: VCPU, _ registers: Registers
    ) throws(DetourError) {
        if holder.call != nil { try returned(slot: holder.slot, registers) }
        if let call = try nextCall(from: .systemCall) {
            if try detour.sendAgain(holder, vcpu, registers, errand: .call(call)) {
                agents.didSend(slot: holder.slot)
                return
            }
            agents.couldNotSend()
        } else if agents.keepsThread, try detour.sendAgain(holder, vcpu, registers, errand: .wait(Self.nap)) {
            return
        }
        borrowed.remove(at: index)
        try detour.takeBack(holder, vcpu, registers)
    }

    /// Has the next thread stopped that makes a system call, if one is needed.
    private func lookForThread() throws(DetourError) {
        guard agents.wantsThread, !debugRegisters.holds(.injection), let dispatcher else { return }
        // Callers that wait for the agents to go offer their threads themselves.
        if !requests.isEmpty, agents.withdrawalPlace == .powerCall { return }
        try control { () throws(HypervisorError) in
            try effects.withPaused { () throws(HypervisorError) in
                _ = try debugRegisters.acquire(.injection, .execution(dispatcher))
            }
        }
    }

    /// Has those stopped that change a watched translation, where that was asked for and the filter is there.
    private func followReportPoint() throws(DetourError) -> Deadline? {
        try reportPoint?.tick(isInTransition ? nil : filter?.reportPoint) ?? nil
    }

    // MARK: Crashes

    /// Has a crashing guest stopped while there is something to clean up.
    private func watchForCrash() throws(DetourError) {
        guard let bugCheck, agents.isOutstanding != debugRegisters.holds(.bugCheck) else { return }
        try control { () throws(HypervisorError) in
            if !agents.isOutstanding {
                try effects.withPaused { () throws(HypervisorError) in try debugRegisters.release(.bugCheck) }
            } else if debugRegisters.registers.contains(nil) {
                try effects.withPaused { () throws(HypervisorError) in
                    _ = try debugRegisters.acquire(.bugCheck, .execution(bugCheck))
                }
            }
        }
    }

    /// The guest crashes. Nothing of an agent's shall be in its dump, nor run any more. The machine stands.
    func handleBugCheck() throws(DetourError) {
        try attempt { () throws(AgentError) in try agents.zeroEverything() }
        try control { () throws(HypervisorError) in try debugRegisters.release(.bugCheck) }
        try reportPoint?.release()
    }

    // MARK: Time and ends

    /// Does what is due, and says when something is due again.
    func tick() throws(DetourError) -> Deadline? {
        // A caller has been let in: the machine may go to sleep at any instant, and QEMU 7.2 ends in an abort where a
        // pause comes between the guest's wish to sleep and the sleep. So nothing is done now that would pause it.
        if !requests.isEmpty, !isOutstanding { return protections.tick() }
        let due = try attempt { () throws(AgentError) in try agents.tick() }
        let hunted = try goOnHunting()
        try updateFilter()
        try lookForThread()
        try watchForCrash()
        // Last: all others go before it.
        let awaited = try followReportPoint()
        return [hunted, due ?? nil, awaited, protections.tick()].compactMap(\.self).min()
    }

    /// Leaves the guest: nothing leads to an agent, and those that are there leave by themselves. The machine stands.
    func leave() throws(DetourError) {
        try hunt?.release()
        try reportPoint?.release()
        hunt = nil
        try attempt { () throws(AgentError) in try agents.release() }
    }

    /// The guest was reset: nothing is there any more.
    func forgetEverything() throws(DetourError) {
        borrowed = []
        requests = [:]
        isHostGoingDown = false
        try attempt { () throws(AgentError) in try agents.forgetEverything() }
    }

    /// Runs what agents do while the machine stands.
    private func whilePaused(_ body: () throws(AgentError) -> Void) throws(DetourError) {
        let result = try control { () throws(HypervisorError) in try effects.attemptPaused(body) }
        try attempt { () throws(AgentError) in try result.get() }
    }

    /// Runs what agents do; what goes wrong with one of them is said, and nothing else ends by it.
    @discardableResult
    private func attempt<Value>(_ body: () throws(AgentError) -> Value) throws(DetourError) -> Value? {
        do throws(AgentError) {
            return try body()
        } catch {
            if case .hypervisor(let error) = error { throw .hypervisor(error) }
            report(.warning("an agent: \(error)"))
            return nil
        }
    }
}
