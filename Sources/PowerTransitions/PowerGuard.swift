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
    /// How long a caller waits at a time for what has to leave the guest.
    static let participantDelay = Duration.milliseconds(1)
    /// So many refused requests in a row, each within `refusalWindow` of the last, are reported.
    static let refusalLimit = 3
    static let refusalWindow = Duration.seconds(10)
    /// By how much each further one is answered later, and by how much at most.
    static let slowAnswerStep = Duration.milliseconds(100)
    static let slowestAnswer = Duration.seconds(2)
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
        /// Until when it waits for what has to leave the guest, if not beyond `end` anyway.
        var participantEnd: Deadline
        /// Stops and pauses counted before the stop that began it.
        var stopsBefore: Int
        var isReleased = false
    }

    public let detour: PatchlessDetour
    public private(set) var counts = CallCounts()
    public var options: PowerGuardOptions

    /// What has to leave the guest before a transition.
    public weak var participant: (any TransitionParticipant)?

    /// Is told what went wrong that the guest's requests do not depend on.
    public var warn: (String) -> Void = { _ in }

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
    /// Requests in a row that were refused, and when the last one was.
    private var refusals = 0
    private var lastRefusal: Deadline?

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
        // Threads that were borrowed elsewhere are not the guard's: whoever comes with one's stack pointer is another.
        if let holder = detour.returningHolder(registers), holds.contains(where: { $0.slot == holder.slot }),
            isThread(of: holder, caller.thread)
        {
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
        let request = callers.request(registers)
        var call = FunctionCall(
            stackSlot: registers.rsp, caller: caller, request: request, role: .ignored, isWatched: false)
        let watch = BreakpointSite.access(
            GuestVirtualAddress(registers.rsp), length: Int(detour.convention.wordSize))
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
        if let id = hold {
            try participant?.begins(id, request.transition)
            if (options.hold != .none && !isLeaving) || isSomethingOutstanding || isAnsweredSlowly,
                try beginHold(id, vcpu, registers)
            {
                return
            }
            // It cannot wait for what is still in the guest.
            if isSomethingOutstanding { try participant?.givesUp() }
        }
        try enter(calls.count - 1, vcpu)
    }

    /// Handles a vCPU that may have stopped because a watched stack slot was accessed.
    /// - Returns: whether it has returned from a call that is followed.
    @discardableResult
    public func handleAccess(_ vcpu: VCPU, _ registers: Registers) throws(DetourError) -> Bool {
        let distance = detour.convention.returnDistance(arguments: PowerRequest.argumentCount)
        guard let index = calls.firstIndex(where: { $0.isWatched && $0.hasReturned(registers, distance: distance) })
        else { return false }
        let call = calls.remove(at: index)
        counts.returns += 1
        try control { () throws(HypervisorError) in _ = try detour.effects.settleAccess(of: vcpu, at: registers) }
        try stopWatching(call)
        let status = UInt32(truncatingIfNeeded: registers.rax)
        switch call.role {
        case .request(let id):
            try close(id, status: status)
        case .awaitsReentry:
            report(
                .requestIgnored(
                    call.request, call.caller,
                    reason: "the kernel turned the user-mode call down before it took effect",
                    status: status))
        case .ignored, .ledTo: break
        }
        return true
    }

    /// Something has to leave the guest first.
    private var isSomethingOutstanding: Bool { participant?.isOutstanding ?? false }

    private func enter(_ index: Int, _ vcpu: VCPU) throws(DetourError) {
        if case .request(let id) = calls[index].role {
            try participant?.lets(id)
            // In this very stop: nothing may pause the machine between letting a caller in and the outcome.
            if let left = try detour.takeOutPatch() { warn("request #\(id.number) is let in although \(left)") }
        }
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

    private func close(_ id: RequestID, status: UInt32) throws(DetourError) {
        guard let index = records.firstIndex(where: { $0.id == id }) else { return }
        let record = records.remove(at: index)
        let result = record.result(status: status)
        report(.outcome(id, record.transition, result, status: status))
        noteRefusals(result)
        try conclude(result)
    }

    /// Tells whoever withdrew that all is over, if it is.
    private func conclude(_ result: TransitionResult) throws(DetourError) {
        guard records.isEmpty else { return }
        // A request that nobody saw return may still be on its way down, and what is put back now would go with it.
        let isOver = result != .unknown && !calls.contains { $0.isUnwatchedRequest }
        if isOver, let reason = try detour.putPatchBack() { warn("the inline detour was not put back: \(reason)") }
        try participant?.ends(result)
    }

    /// Requests that are refused again and again may be made for what they lead to here.
    private func noteRefusals(_ result: TransitionResult) {
        let time = now()
        if let last = lastRefusal, time - last > Self.refusalWindow { refusals = 0 }
        guard result == .refused else {
            refusals = 0
            return
        }
        refusals += 1
        lastRefusal = time
        if refusals >= Self.refusalLimit { report(.repeatedlyRefused(count: refusals, delay: slowAnswer)) }
    }

    /// The next request is answered later than it could be.
    private var isAnsweredSlowly: Bool {
        guard let lastRefusal, refusals >= Self.refusalLimit, !isLeaving else { return false }
        return now() - lastRefusal <= Self.refusalWindow
    }

    private var slowAnswer: Duration {
        min(Self.slowAnswerStep * (1 + refusals - Self.refusalLimit), Self.slowestAnswer)
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
        let start = now()
        var hold = Hold(
            id: id, slot: -1, start: start, end: start + length, reason: reason,
            participantEnd: start + (participant?.waitsUntil ?? .zero), stopsBefore: stopsBefore)
        // However short a hold was asked for, it is made.
        guard let errand = try errand(of: &hold) ?? (length > .zero ? .wait(length) : nil) else { return false }
        let holder: PatchlessDetour.Holder
        do throws(DetourError) {
            holder = try detour.hold(vcpu, registers, errand: errand)
        } catch {
            if case .hypervisor = error { throw error }
            if case .call = errand { participant?.sent(slot: nil) }
            report(.notHeld(id, reason: error.description))
            return false
        }
        if case .call = errand { participant?.sent(slot: holder.slot) }
        hold.slot = holder.slot
        holds.append(hold)
        return true
    }

    /// What a caller is sent off to do next; nil where it is to go.
    private func errand(of hold: inout Hold) throws(DetourError) -> PatchlessDetour.Errand? {
        if isSomethingOutstanding {
            if hold.participantEnd > now() {
                if let call = try participant?.nextCall() { return .call(call) }
                // It may have been the last thing to look at.
                if isSomethingOutstanding { return .wait(Self.participantDelay) }
            } else {
                try participant?.givesUp()
                if hold.end <= now() { hold.reason = .deadline }
            }
        }
        let left = hold.end - now()
        return left > Self.shortestDelay && !hold.isReleased ? .wait(left) : nil
    }

    /// When a hold ends by itself, from its beginning, and why.
    private var holdEnd: (length: Duration, reason: ReleaseReason) {
        if isLeaving { return (.zero, .leaving) }
        if isAnsweredSlowly && options.hold.longest < slowAnswer { return (slowAnswer, .answeredSlowly) }
        switch options.hold {
        case .none: return (.zero, .withdrawn)
        case .untilReleased(let limit): return (limit, .holdLimit)
        case .lasting:
            return options.hold.longest > options.deadline
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
        if holder.call != nil { try participant?.returned(slot: holder.slot, registers) }
        if let index, holder.isInDelay {
            if let errand = try errand(of: &holds[index]) {
                let isSent = try detour.sendAgain(holder, vcpu, registers, errand: errand)
                if case .call = errand { participant?.sent(slot: isSent ? holder.slot : nil) }
                if isSent { return }
                if isSomethingOutstanding { try participant?.givesUp() }
            }
            if !holds[index].isReleased {
                holds[index].isReleased = true
                if holds[index].end - now() > Self.shortestDelay { holds[index].reason = .cannotWait }
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
        for index in holds.indices where holds[index].end <= time && !isSomethingOutstanding {
            try release(index, because: holds[index].reason)
        }
        if !holds.isEmpty && nextLeaseRenewal <= time {
            try detour.renewLease()
            nextLeaseRenewal = time + Self.leaseInterval
        }
        for record in records where !record.isWatched && record.deadline <= time {
            report(.outcome(record.id, record.transition, .unknown, status: nil))
        }
        let open = records.count
        records.removeAll { !$0.isWatched && $0.deadline <= time }
        if records.count < open { try conclude(.unknown) }

        // Who waits for what has to leave comes back by itself, and is looked at then.
        var next = isSomethingOutstanding ? [] : holds.filter { !$0.isReleased }.map(\.end)
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
