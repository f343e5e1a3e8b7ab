import Detours
import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// What the guard is to do beyond observing.
public struct PowerGuardOptions: Equatable, Sendable {
    /// Vigil's own deadline for any hold.
    public static let defaultDeadline = Duration.seconds(10)

    public var hold: HoldPolicy
    /// No caller is held longer than this, except where the policy has a limit of its own.
    public var deadline = Self.defaultDeadline

    /// - Parameter hold: how long to hold each request's caller; nil for not at all.
    public init(hold: Duration? = nil) { self.hold = hold.map(HoldPolicy.lasting) ?? .none }

    /// Each request's caller is held until `PowerGuard.release(_:because:)` lets it go, or the limit passes.
    public init(holdUntilReleasedWithin limit: Duration) { hold = .untilReleased(limit: limit) }
}

/// Sees every power transition coming: follows each call of NtSetSystemPowerState from its entry to its return.
///
/// The guard is told of stops and host events by the engine, one at a time, and reports what they mean.
/// It belongs to one boot of one kernel; a reset ends it.
public final class PowerGuard {
    /// How long an outcome that nothing watches is waited for.
    static let outcomeTimeout = Duration.seconds(60)
    /// A hold that has no longer to go is over.
    static let shortestDelay = Duration.milliseconds(1)
    /// How often the lease of waiting callers is renewed.
    static let leaseInterval = Duration.milliseconds(250)

    /// A caller that is being held.
    private struct Hold {
        var id: RequestID
        var slot: Int
        var start: Deadline
        var end: Deadline
        /// Why the hold will have ended at `end`.
        var reason: ReleaseReason
        /// Stops and pauses counted before the stop that began it.
        var stopsBefore: Int
        var isReleased = false
    }

    public let detour: PatchlessDetour
    public private(set) var counts = CallCounts()
    public var options: PowerGuardOptions

    private let callers: CallerReader
    /// Decoding showed that a user-mode call re-enters the function from kernel mode.
    private let reentryIsProved: Bool
    private let report: (PowerEvent) -> Void
    private let now: () -> Deadline
    private var calls: [FunctionCall] = []
    private var records: [TransitionRecord] = []
    private var holds: [Hold] = []
    private var lastID: Int
    private var nextLeaseRenewal: Deadline
    /// Nobody is held any more.
    private var isLeaving = false

    /// - Parameters:
    ///   - reentryIsProved: without it, a user-mode call is taken for a request of its own.
    ///   - lastID: the last request's number in this session.
    ///   - now: the host's monotonic clock.
    public init(
        detour: PatchlessDetour, callers: CallerReader, reentryIsProved: Bool, options: PowerGuardOptions,
        lastID: Int = 0, now: @escaping () -> Deadline = { ContinuousClock.now },
        report: @escaping (PowerEvent) -> Void
    ) {
        self.detour = detour
        self.callers = callers
        self.reentryIsProved = reentryIsProved
        self.options = options
        self.lastID = lastID
        self.now = now
        self.report = report
        nextLeaseRenewal = now()
    }

    /// The number of the last request.
    public var lastRequest: Int { lastID }
    /// How many callers are being held.
    public var heldCallers: Int { detour.holders.count }
    /// Requests whose callers wait and were not told to go yet.
    public var waitingRequests: [RequestID] { holds.filter { !$0.isReleased }.map(\.id) }
    /// Requests whose outcome is not known yet.
    public var openTransitions: Int { records.count }

    // MARK: Stops

    /// Handles one vCPU that stands at the function's entry, or where the jump there leads.
    /// (The original's `IntWinPowHandlePowerStateChange`.)
    public func handlePowerStateChange(_ vcpu: VCPU, _ registers: Registers) throws(DetourError) {
        let caller = callers.caller(registers)
        if let holder = detour.returningHolder(registers), isThread(of: holder, caller.thread) {
            return try handleArrival(of: holder, vcpu, registers)
        }
        if let known = calls.firstIndex(where: {
            $0.isEntering && $0.isSame(stackSlot: registers.rsp, thread: caller.thread)
        }) {
            // The page of the entry was absent and is there now: the same call, not another one.
            return try enter(known, vcpu)
        }

        counts.entries += 1
        forgetOverwrittenCalls(by: registers.rsp, of: caller.thread)
        let request = PowerRequest(x64: registers)
        var call = FunctionCall(
            stackSlot: registers.rsp, caller: caller, request: request, role: .ignored, isWatched: false)
        let watch = BreakpointSite.access(GuestVirtualAddress(registers.rsp), length: 8)
        call.isWatched = try control { () throws(HypervisorError) in
            try detour.debugRegisters.acquire(.returnWatch(stackSlot: registers.rsp), watch)
        }
        if !call.isWatched { counts.unwatched += 1 }

        var hold: RequestID?
        if let reason = request.rejection {
            report(.requestIgnored(request, caller, reason: reason, status: nil))
            answerOuterCall(of: caller.thread, with: .ignored)
        } else if caller.mode == .user && reentryIsProved {
            call.role = .awaitsReentry
        } else if let id = requestOfOuterCall(of: caller.thread) {
            // Its user-mode call was taken for the request already.
            call.role = .ledTo(id)
        } else {
            let id = open(request, caller, isWatched: call.isWatched)
            call.role = .request(id)
            answerOuterCall(of: caller.thread, with: .ledTo(id))
            hold = id
        }
        calls.append(call)
        if let id = hold, options.hold != .none, !isLeaving, try beginHold(id, vcpu, registers) { return }
        try enter(calls.count - 1, vcpu)
    }

    /// Handles a vCPU that stopped because a watched stack slot was accessed.
    public func handleAccess(_ vcpu: VCPU, _ registers: Registers) throws(DetourError) {
        guard let index = calls.firstIndex(where: { $0.isWatched && $0.hasReturned(registers) }) else { return }
        let call = calls.remove(at: index)
        counts.returns += 1
        try control { () throws(HypervisorError) in try detour.effects.settleAccess(of: vcpu) }
        try stopWatching(call)
        let status = UInt32(truncatingIfNeeded: registers.rax)
        switch call.role {
        case .request(let id):
            close(id, status: status)
        case .awaitsReentry:
            report(
                .requestIgnored(
                    call.request, call.caller,
                    reason: "the kernel turned the user-mode call down before it took effect",
                    status: status))
        case .ignored, .ledTo: break
        }
    }

    private func enter(_ index: Int, _ vcpu: VCPU) throws(DetourError) {
        let hasEntered = try detour.stepOver(vcpu)
        calls[index].isEntering = !hasEntered
    }

    // MARK: Calls of one thread

    /// The kernel-mode call that a user-mode one led to lies deeper on the same stack.
    private func answerOuterCall(of thread: GuestVirtualAddress, with role: FunctionCall.Role) {
        for index in calls.indices where calls[index].caller.thread == thread && calls[index].role == .awaitsReentry {
            calls[index].role = role
        }
    }

    private func requestOfOuterCall(of thread: GuestVirtualAddress) -> RequestID? {
        for call in calls where call.caller.thread == thread && call.caller.mode == .user {
            if case .request(let id) = call.role { return id }
        }
        return nil
    }

    /// A thread that calls from above a call's stack slot has left that call without its return being seen.
    private func forgetOverwrittenCalls(by stackSlot: UInt64, of thread: GuestVirtualAddress) {
        // Callers whose threads could not be read are not one thread.
        guard thread.rawValue != 0 else { return }
        let left = calls.filter { $0.caller.thread == thread && $0.stackSlot <= stackSlot }
        calls.removeAll { $0.caller.thread == thread && $0.stackSlot <= stackSlot }
        for call in left {
            try? stopWatching(call)
            if case .request(let id) = call.role, let index = records.firstIndex(where: { $0.id == id }) {
                // Only host events and the deadline can tell its outcome now.
                records[index].isWatched = false
            }
            if call.role == .awaitsReentry {
                report(
                    .requestIgnored(
                        call.request, call.caller,
                        reason: "the user-mode call ended without a kernel-mode one", status: nil))
            }
        }
    }

    private func stopWatching(_ call: FunctionCall) throws(DetourError) {
        guard call.isWatched else { return }
        try control { () throws(HypervisorError) in
            try detour.debugRegisters.release(.returnWatch(stackSlot: call.stackSlot))
        }
    }

    // MARK: Requests and outcomes

    private func open(_ request: PowerRequest, _ caller: Caller, isWatched: Bool) -> RequestID {
        lastID += 1
        let id = RequestID(lastID)
        records.append(
            TransitionRecord(
                id: id, transition: request.transition, isWatched: isWatched,
                deadline: now() + Self.outcomeTimeout + options.hold.longest))
        report(.transitionRequested(id, request, caller))
        return id
    }

    private func close(_ id: RequestID, status: UInt32) {
        guard let index = records.firstIndex(where: { $0.id == id }) else { return }
        let record = records.remove(at: index)
        report(.outcome(id, record.transition, record.result(status: status), status: status))
    }

    /// Holds a host event against what was requested.
    public func handle(_ event: HostEvent) {
        switch event {
        case .powerButtonPressed, .stoppedByOperator, .startedByOperator: return
        default: break
        }
        let index = records.lastIndex { $0.foretold(event) }
        if index == nil { report(.unannounced(event)) }
        // What happens to the machine happens to all requests under way.
        for position in records.indices { records[position].note(event) }
        // The machine goes down but once, and under the other requests too, whatever they had asked for.
        let deciding = index ?? records.indices.last
        guard let ending = deciding.flatMap({ records[$0].result(of: event) }) else { return }
        for record in records { report(.outcome(record.id, record.transition, ending, status: nil)) }
        records = []
    }

    /// The machine is gone without a word: the event can be lost in the race with QEMU's exit.
    /// - Returns: whether a request had foretold it.
    public func machineEnded() -> Bool {
        let powersOff = records.contains { $0.foretold(.poweredOff(byGuest: true)) }
        if powersOff { handle(.poweredOff(byGuest: true)) }
        return powersOff
    }

    // MARK: Holding

    /// Lets the caller's thread wait in the guest. (The original's `IntWinPowEnableSpinWait`.)
    /// - Returns: false where it cannot wait; then it goes on at once, and that was reported.
    private func beginHold(_ id: RequestID, _ vcpu: VCPU, _ registers: Registers) throws(DetourError) -> Bool {
        let stopsBefore = stops - 1
        let (length, reason) = holdEnd
        let holder: PatchlessDetour.Holder
        do throws(DetourError) {
            holder = try detour.hold(vcpu, registers, for: length)
        } catch {
            if case .hypervisor = error { throw error }
            report(.notHeld(id, reason: error.description))
            return false
        }
        let start = now()
        holds.append(
            Hold(
                id: id, slot: holder.slot, start: start, end: start + length, reason: reason, stopsBefore: stopsBefore))
        return true
    }

    /// When a hold ends by itself, from its beginning, and why.
    private var holdEnd: (length: Duration, reason: ReleaseReason) {
        switch options.hold {
        case .untilReleased(let limit): (limit, .holdLimit)
        case .none, .lasting:
            options.hold.longest > options.deadline
                ? (options.deadline, .deadline) : (options.hold.longest, .holdOver)
        }
    }

    /// Lets a request's caller go, if it still waits.
    public func release(_ id: RequestID, because reason: ReleaseReason) throws(DetourError) {
        guard let index = holds.firstIndex(where: { $0.id == id }) else { return }
        try release(index, because: reason)
    }

    /// Lets a held caller go. (The original's `IntWinPowDisableSpinWait`.)
    private func release(_ index: Int, because reason: ReleaseReason) throws(DetourError) {
        guard !holds[index].isReleased else { return }
        holds[index].isReleased = true
        holds[index].reason = reason
        try detour.release(slot: holds[index].slot)
    }

    /// Lets every held caller go, because Vigil leaves; later ones are not held.
    public func releaseAll() throws(DetourError) {
        isLeaving = true
        for index in holds.indices { try release(index, because: .leaving) }
    }

    /// Whether a held caller's thread is this one. Another one that comes with its stack pointer has no claim to its
    /// registers; a thread that cannot be read now is believed.
    private func isThread(of holder: PatchlessDetour.Holder, _ thread: GuestVirtualAddress) -> Bool {
        guard let call = calls.first(where: { $0.stackSlot == holder.registers.rsp }) else { return true }
        return [call.caller.thread, GuestVirtualAddress(0)].contains(thread) || call.caller.thread.rawValue == 0
    }

    /// Handles a held caller that stands at the entry again: before its time is over it is sent off once more.
    private func handleArrival(
        of holder: PatchlessDetour.Holder, _ vcpu: VCPU, _ registers: Registers
    ) throws(DetourError) {
        let index = holds.firstIndex { $0.slot == holder.slot }
        if let index {
            let left = holds[index].end - now()
            if left > Self.shortestDelay, try detour.sendAgain(holder, vcpu, registers, for: left) { return }
            if holder.isInDelay && !holds[index].isReleased {
                holds[index].isReleased = true
                if left > Self.shortestDelay { holds[index].reason = .cannotWait }
            }
        }
        try detour.takeBack(holder, vcpu, registers)
        if let index {
            let hold = holds.remove(at: index)
            report(.held(hold.id, duration: now() - hold.start, stops: stops - hold.stopsBefore))
            report(.released(hold.id, hold.isReleased ? hold.reason : .leaseExpired))
        }
        if let index = calls.firstIndex(where: { $0.stackSlot == holder.registers.rsp }) {
            try enter(index, vcpu)
        } else {
            try detour.stepOver(vcpu)
        }
    }

    private var stops: Int { detour.effects.counts.breakpointStops + detour.effects.counts.pauses }

    // MARK: Time

    /// Does what is due, and says when something is due again.
    public func tick() throws(DetourError) -> Deadline? {
        let time = now()
        for index in holds.indices where holds[index].end <= time { try release(index, because: holds[index].reason) }
        if !holds.isEmpty && nextLeaseRenewal <= time {
            try detour.renewLease()
            nextLeaseRenewal = time + Self.leaseInterval
        }
        for record in records where !record.isWatched && record.deadline <= time {
            report(.outcome(record.id, record.transition, .unknown, status: nil))
        }
        records.removeAll { !$0.isWatched && $0.deadline <= time }

        var next = holds.filter { !$0.isReleased }.map(\.end)
        next += records.filter { !$0.isWatched }.map(\.deadline)
        if !holds.isEmpty { next.append(nextLeaseRenewal) }
        return next.min()
    }

    /// Ends the guard's watches. The machine stands, and nobody is held.
    public func disarm() throws(DetourError) {
        calls = []
        try control { () throws(HypervisorError) in try detour.debugRegisters.releaseAll() }
    }

    /// The machine was reset: nothing of this boot is left.
    public func forgetEverything() throws(DetourError) {
        holds = []
        try disarm()
        try detour.forgetEverything()
    }
}
