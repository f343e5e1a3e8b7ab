import GuestMemory
import X86

/// A caller that Vigil keeps waiting in the guest.
public struct HeldCaller: Equatable, Sendable {
    /// How a caller waits that is sent into a function of the guest and gets its registers back afterwards.
    public struct Delay: Equatable, Sendable {
        /// The intercepted function's entry, which the caller comes back to.
        public var entry: GuestVirtualAddress
        /// Its stack pointer when it comes back.
        public var arrivalRSP: UInt64
        /// Where it stands while it is being sent off, or put back.
        public var vcpu: VCPU
        /// What it has to give back before it gets its registers, if Vigil dies meanwhile.
        public var owed: OwedBlock?

        public init(entry: GuestVirtualAddress, arrivalRSP: UInt64, vcpu: VCPU, owed: OwedBlock? = nil) {
            self.entry = entry
            self.arrivalRSP = arrivalRSP
            self.vcpu = vcpu
            self.owed = owed
        }
    }

    /// A number of its own; in the handler, which of the wait bytes is this caller's.
    public var slot: Int
    /// The caller's own registers, at the function's entry or wherever else it was stopped.
    public var registers: Registers
    /// Nil for one that waits in the detour's handler, which keeps the registers itself.
    public var delay: Delay?
    /// Its vector registers, where those have to be put back too.
    public var vectors: VectorRegisters?

    public init(slot: Int, registers: Registers, delay: Delay? = nil, vectors: VectorRegisters? = nil) {
        self.slot = slot
        self.registers = registers
        self.delay = delay
        self.vectors = vectors
    }
}

/// Where a detour's handler is in the guest, and how to let callers out of it.
public struct HandlerLocation: Equatable, Sendable {
    /// The function's entry, which every caller returns to from the handler.
    public var entry: GuestVirtualAddress
    public var address: GuestVirtualAddress
    public var physical: GuestPhysicalAddress
    /// In bytes.
    public var length: Int
    /// Offset of the wait bytes from the handler's start, one byte for each slot; 0 lets a caller go.
    public var waitOffset: Int

    public init(
        entry: GuestVirtualAddress, address: GuestVirtualAddress, physical: GuestPhysicalAddress, length: Int,
        waitOffset: Int
    ) {
        self.entry = entry
        self.address = address
        self.physical = physical
        self.length = length
        self.waitOffset = waitOffset
    }

    /// Whether an instruction pointer lies in the handler.
    public func contains(_ rip: UInt64) -> Bool { rip &- address.rawValue < UInt64(length) }
}

/// One change of a guest, or of what would stop it.
public enum Effect: Equatable, Sendable {
    case pause
    case resume
    case insert(BreakpointSite)
    case remove(BreakpointSite)
    case step(VCPU)
    case setRegisters(VCPU)
    case writeCode(GuestPhysicalAddress, count: Int)
    case writeData(GuestPhysicalAddress, count: Int)
    /// The handler is about to be written, or, with nil, has been zeroed.
    case handler(HandlerLocation?)
    /// A jump is about to be put over a function's first bytes; or, with nil, everything of it is gone.
    case patch(CodePatch?)
    /// Bytes of the kernel's code are about to be replaced; or, where the patch is empty, are as they were.
    case replace(CodePatch.Place)
    /// An agent is about to run in the guest; or, with nil, is gone, or leaves by itself.
    case agent(Int, AgentTrace?)
    /// A caller is about to be sent into the handler; or the registers of one that waits in a delay are
    /// about to be changed.
    case hold(HeldCaller)
    /// A caller that waits in a delay has its registers for that: it comes back by itself.
    case sentOff(slot: Int)
    /// A caller came out of the handler, or has its registers back.
    case release(slot: Int)
}

/// Is told of each effect before it happens.
///
/// The guardian hangs on to this, so that whatever Vigil dies of, somebody knows what was in force.
public protocol EffectWitness: AnyObject {
    func willPerform(_ effect: Effect) throws(HypervisorError)
}

/// How often each kind of effect was performed.
public struct EffectCounts: Equatable, Sendable {
    public var pauses = 0
    public var breakpointStops = 0
    public var steps = 0
    public var registerWrites = 0
    public var codeBytesWritten = 0
    public var dataBytesWritten = 0

    public init() {}
}

/// The one place through which everything that changes a guest goes.
///
/// Counting, the guardian, and whatever else must know of every change stand here, so that no other
/// part can forget them.
public final class GuestEffects {
    public let machine: any ControllableMachine
    public private(set) var counts = EffectCounts()
    /// Told of each effect before it happens, in order.
    public var witnesses: [any EffectWitness] = []
    /// Called as soon as the machine stands for a pause of ours, before anything else is done to it. A stop that a
    /// watched access would have caused in that very moment is not reported any more: who has watches looks whether one
    /// was met, while it still is set.
    public var afterPausing: (() throws(HypervisorError) -> Void)?
    /// How long the machine stood still for pauses of ours, in all.
    public private(set) var pausedTime = Duration.zero
    /// The machine stands for a pause of ours, or at a breakpoint of ours.
    private var standsForUs = false
    /// What is set now.
    public private(set) var sites: Set<BreakpointSite> = []

    public init(machine: any ControllableMachine) {
        self.machine = machine
    }

    private func announce(_ effect: Effect) throws(HypervisorError) {
        for witness in witnesses { try witness.willPerform(effect) }
    }

    /// Takes control of the machine, runs `body` in the stop that this costs, and lets it run on.
    public func takeControl(_ body: () throws(HypervisorError) -> Void) throws(HypervisorError) {
        let witness = try machine.prepareControl()
        witnesses.append(witness)
        let isOurs = try !machine.isStanding
        if isOurs { try announce(.pause) }
        let start = ContinuousClock.now
        do throws(HypervisorError) {
            let stopped = try machine.openControl()
            try finish(pause: stopped, since: start, body)
        } catch {
            // What is half done here, the guardian takes back; unless it has, and that was the reason.
            let reason = machine.lossOfControl
            abandonWitnesses()
            throw reason ?? error
        }
    }

    /// Runs `body` while the machine stands still, and resumes it on every path out, if this call stopped it.
    ///
    /// Where the machine stands already (its operator's stop, a breakpoint's), it is left standing.
    public func withPaused<Result>(
        _ body: () throws(HypervisorError) -> Result
    ) throws(HypervisorError) -> Result {
        let start = ContinuousClock.now
        if try machine.isStanding { return try finish(pause: false, since: start, body) }
        try announce(.pause)
        return try finish(pause: try machine.pause(), since: start, body)
    }

    /// Like `withPaused`, for a body with errors of its own kind.
    /// - Returns: what the body returned or threw; the machine has been resumed either way.
    public func attemptPaused<Value, Failure: Error>(
        _ body: () throws(Failure) -> Value
    ) throws(HypervisorError) -> Result<Value, Failure> {
        try withPaused { () throws(HypervisorError) in
            do throws(Failure) { return Result<Value, Failure>.success(try body()) } catch { return .failure(error) }
        }
    }

    /// Like `withPaused`, but does nothing where a breakpoint stopped the machine first.
    /// - Returns: false then; the stop is the machine's next event, and has to be handled.
    public func withPausedUnlessStopped(
        _ body: () throws(HypervisorError) -> Void
    ) throws(HypervisorError) -> Bool {
        let start = ContinuousClock.now
        // Its event may have been met by an earlier pause: it stands, but not for its operator, and has to run on.
        if machine.hasPendingStop { return false }
        if try machine.isStanding {
            try finish(pause: false, since: start, body)
            return true
        }
        try announce(.pause)
        guard try machine.pause() else { return false }
        try finish(pause: true, since: start, body)
        return true
    }

    private func finish<Result>(
        pause isOurs: Bool, since start: ContinuousClock.Instant, _ body: () throws(HypervisorError) -> Result
    ) throws(HypervisorError) -> Result {
        if isOurs {
            counts.pauses += 1
            standsForUs = true
        }
        /// Also where a machine that was to stay as it is was started by others, and `body` has stopped it.
        func resumeIfOurs() throws(HypervisorError) {
            if isOurs || (!standsForUs && machine.hasStoppedUnasked) { try resumeMachine() }
        }
        defer { if isOurs { pausedTime += .now - start } }
        let result: Result
        do {
            if isOurs { try afterPausing?() }
            result = try body()
        } catch {
            // The first error is the one to report; a failing resume is what the guardian is for.
            try? resumeIfOurs()
            throw error
        }
        try resumeIfOurs()
        return result
    }

    /// Goes on without witnesses, which are gone, or take back now what is in force.
    public func abandonWitnesses() {
        witnesses.removeAll()
        machine.abandonWitness()
    }

    /// Gives control back. The machine's sites must be removed before.
    public func giveUpControl() throws(HypervisorError) {
        try machine.closeControl()
        witnesses.removeAll()
        sites.removeAll()
    }

    /// Notes a stop that one of our breakpoints caused.
    public func noteStop() {
        counts.breakpointStops += 1
        standsForUs = true
    }

    /// Lets the machine run on after a stop that one of our breakpoints caused.
    public func resumeFromStop() throws(HypervisorError) { try resumeMachine() }

    private func resumeMachine() throws(HypervisorError) {
        try machine.resume()
        standsForUs = false
        // After the fact: who dies in between leaves a machine that stands, and the guardian must know that.
        try announce(.resume)
    }

    public func insert(_ site: BreakpointSite) throws(HypervisorError) {
        guard !sites.contains(site) else { return }
        try announce(.insert(site))
        try machine.insert(site)
        sites.insert(site)
    }

    public func remove(_ site: BreakpointSite) throws(HypervisorError) {
        guard sites.contains(site) else { return }
        try machine.remove(site)
        sites.remove(site)
        // After the fact: until it is gone, the guardian must know of it.
        try announce(.remove(site))
    }

    /// Executes the instruction that an execution breakpoint at the vCPU's RIP guards.
    public func stepOver(_ site: BreakpointSite, on vcpu: VCPU) throws(HypervisorError) {
        try announce(.step(vcpu))
        try machine.remove(site)
        counts.steps += 1
        do {
            try machine.step(vcpu)
        } catch {
            try? machine.insert(site)
            throw error
        }
        try machine.insert(site)
    }

    /// Executes one instruction on a vCPU of the standing machine. No breakpoint guards it.
    public func step(_ vcpu: VCPU) throws(HypervisorError) {
        try announce(.step(vcpu))
        counts.steps += 1
        try machine.step(vcpu)
    }

    /// Lets the machine forget a watched access of a vCPU, while its watch is still set.
    ///
    /// A vCPU that stands at a breakpoint is left alone: a step would take it past that, and the breakpoint's own stop,
    /// which comes as soon as the machine runs, does the same.
    /// - Returns: whether the vCPU may have executed an instruction for it.
    @discardableResult
    public func settleAccess(of vcpu: VCPU, at registers: Registers) throws(HypervisorError) -> Bool {
        if sites.contains(.execution(GuestVirtualAddress(registers.rip))) { return false }
        try announce(.step(vcpu))
        return try machine.settleAccess(of: vcpu)
    }

    public func setRegisters(
        of vcpu: VCPU, from old: Registers, to new: Registers
    ) throws(HypervisorError) {
        try announce(.setRegisters(vcpu))
        counts.registerWrites += 1
        try machine.setRegisters(of: vcpu, from: old, to: new)
    }

    /// Puts a thread's vector registers back.
    public func setVectorRegisters(of vcpu: VCPU, to vectors: VectorRegisters) throws(HypervisorError) {
        try announce(.setRegisters(vcpu))
        counts.registerWrites += 1
        try machine.setVectorRegisters(of: vcpu, to: vectors)
    }

    public func writeCode(_ bytes: [UInt8], at address: GuestPhysicalAddress) throws(HypervisorError) {
        try announce(.writeCode(address, count: bytes.count))
        counts.codeBytesWritten += bytes.count
        try machine.writeCode(bytes, at: address)
    }

    /// Writes bytes that the guest only reads as data, stopping the machine only where it must.
    public func writeData(_ bytes: [UInt8], at address: GuestPhysicalAddress) throws(HypervisorError) {
        guard machine.writesDataWhileRunning else {
            return try withPaused { () throws(HypervisorError) in try writeCode(bytes, at: address) }
        }
        try announce(.writeData(address, count: bytes.count))
        counts.dataBytesWritten += bytes.count
        try machine.writeData(bytes, at: address)
    }

    /// Tells the witnesses that a handler is about to be written, or (nil) that it has been zeroed.
    public func noteHandler(_ location: HandlerLocation?) throws(HypervisorError) { try announce(.handler(location)) }

    /// Tells the witnesses that a function is about to be patched, or (nil) that nothing of that is left.
    public func notePatch(_ patch: CodePatch?) throws(HypervisorError) { try announce(.patch(patch)) }

    /// Replaces bytes of the kernel's code: who watches knows how to put them back. The machine stands.
    public func replaceCode(_ place: CodePatch.Place) throws(HypervisorError) {
        try announce(.replace(place))
        try writeCode(place.patch, at: place.physical)
    }

    /// Puts back what was replaced. The machine stands.
    public func restoreCode(_ place: CodePatch.Place) throws(HypervisorError) {
        try writeCode(place.original, at: place.physical)
        // After the fact: until it is done, somebody must know how to.
        try announce(.replace(CodePatch.Place(physical: place.physical, original: place.original, patch: [])))
    }

    /// Tells the witnesses that an agent is about to run in the guest, or (nil) that it is not theirs any more.
    public func noteAgent(_ number: Int, _ trace: AgentTrace?) throws(HypervisorError) {
        try announce(.agent(number, trace))
    }

    /// Tells the witnesses that a caller is about to be sent into the handler, or to get other registers.
    public func noteHold(_ caller: HeldCaller) throws(HypervisorError) { try announce(.hold(caller)) }

    /// Tells the witnesses that a caller has the registers with which it waits.
    public func noteSentOff(slot: Int) throws(HypervisorError) { try announce(.sentOff(slot: slot)) }

    /// Tells the witnesses that a caller came out of the handler, or has its registers back.
    public func noteRelease(slot: Int) throws(HypervisorError) { try announce(.release(slot: slot)) }

    /// Removes everything that would stop the machine.
    public func removeAllSites() throws(HypervisorError) {
        for site in sites { try remove(site) }
    }
}
