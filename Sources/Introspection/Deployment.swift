import Agents
import Detours
import GuestMemory
import HypervisorInterface
import PowerTransitions
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
    private let detour: PatchlessDetour
    private let callers: CallerReader
    /// Where threads are borrowed: KiSystemServiceRepeat.
    private let dispatcher: GuestVirtualAddress?
    /// Where a guest comes by that crashes: KeBugCheckEx.
    private let bugCheck: GuestVirtualAddress?
    private let report: (EngineEvent) -> Void
    private var borrowed: [Borrowed] = []
    private var isInTransition = false
    /// Something had to be taken out for the transition that is under way.
    private var hasWithdrawn = false

    init(
        agents: AgentManager, detour: PatchlessDetour, callers: CallerReader, dispatcher: GuestVirtualAddress?,
        bugCheck: GuestVirtualAddress?, report: @escaping (EngineEvent) -> Void
    ) {
        self.agents = agents
        self.detour = detour
        self.callers = callers
        self.dispatcher = dispatcher
        self.bugCheck = bugCheck
        self.report = report
    }

    private var effects: GuestEffects { detour.effects }
    private var debugRegisters: DebugRegisterTable { detour.debugRegisters }

    /// Threads that are away on an errand of an agent's.
    var borrowedThreads: Int { borrowed.count }

    // MARK: The power path

    func begins(_ id: RequestID, _ transition: Transition) throws(DetourError) {
        isInTransition = true
        if agents.isOutstanding { hasWithdrawn = true }
        try attempt { () throws(AgentError) in try agents.suspend() }
        if agents.withdrawalPlace == .systemCall { try lookForThread() }
    }

    var isOutstanding: Bool { isInTransition && agents.isOutstanding }

    var waitsUntil: Duration { agents.deadlines.withdrawal }

    func nextCall() throws(DetourError) -> GuestCall? {
        let call = try attempt { () throws(AgentError) in try agents.nextCall(from: .powerCall) }
        return call.flatMap(\.self)
    }

    func sent(slot: Int?) {
        if let slot { agents.didSend(slot: slot) } else { agents.couldNotSend() }
    }

    func returned(slot: Int, _ registers: Registers) throws(DetourError) {
        try attempt { () throws(AgentError) in try agents.returned(slot: slot, registers) }
    }

    func givesUp() throws(DetourError) {
        try attempt { () throws(AgentError) in
            try agents.giveUp(because: "the power transition did not wait any longer")
        }
    }

    func lets(_ id: RequestID) throws(DetourError) {
        // Whoever is let in without having waited: nothing that could do harm is behind it.
        if isOutstanding { try givesUp() }
    }

    func ends(_ result: TransitionResult) throws(DetourError) {
        isInTransition = false
        agents.resume()
    }

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
        return false
    }

    /// Borrows the thread that makes a system call on this vCPU.
    private func borrow(_ vcpu: VCPU, _ registers: Registers) throws(DetourError) {
        // One thread is enough, and others shall not be stopped any more. The next tick looks for another one, if this
        // one cannot be had.
        try control { () throws(HypervisorError) in try debugRegisters.release(.injection) }
        guard registers.interruptsEnabled, registers.control.cr8 == 0, registers.privilegeLevel == 0 else { return }
        let call = try attempt { () throws(AgentError) in try agents.nextCall(from: .systemCall) }
        guard let call = call.flatMap(\.self) else { return }
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
        let call = try attempt { () throws(AgentError) in try agents.nextCall(from: .systemCall) }
        if let call = call.flatMap(\.self) {
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
        if isInTransition, agents.withdrawalPlace == .powerCall { return }
        try control { () throws(HypervisorError) in
            try effects.withPaused { () throws(HypervisorError) in
                _ = try debugRegisters.acquire(.injection, .execution(dispatcher))
            }
        }
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
    }

    // MARK: Time and ends

    /// Does what is due, and says when something is due again.
    func tick() throws(DetourError) -> Deadline? {
        let due = try attempt { () throws(AgentError) in try agents.tick() }
        try lookForThread()
        try watchForCrash()
        return due.flatMap(\.self)
    }

    /// Leaves the guest: nothing leads to an agent, and those that are there leave by themselves. The machine stands.
    func leave() throws(DetourError) {
        try attempt { () throws(AgentError) in try agents.release() }
    }

    /// The guest was reset: nothing is there any more.
    func forgetEverything() throws(DetourError) {
        borrowed = []
        isInTransition = false
        try attempt { () throws(AgentError) in try agents.forgetEverything() }
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
