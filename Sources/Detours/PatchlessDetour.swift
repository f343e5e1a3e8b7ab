import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// Interception of a guest function that changes nothing in the guest while it is merely armed.
///
/// A breakpoint stands on the function's entry. A caller that is not held is stepped over it. A caller that
/// is to wait is sent off, comes back to the entry when its time is over, and is recognised there by its stack
/// pointer. It waits in a call of the guest's own delay function (`GuestCaller`), or in the handler, which is
/// written for that purpose into zeroed slack of the kernel's image and zeroed again when nobody is in it.
///
/// With an `InlineDetour` the function is not patchless any more: its first bytes are a jump, and the breakpoint
/// stands where that leads. All else is the same, since a caller has the same registers there but for RIP.
public final class PatchlessDetour {
    /// The guest's own time that callers wait without a sign of life before they go by themselves.
    public static let leaseLimit = Duration.seconds(2)
    /// How long one of the naps is that a caller takes in the handler.
    public static let delayInterval = Duration.milliseconds(5)
    /// The longest delay that a caller is sent into without a handler: nothing but the delay's end brings it
    /// back, whoever waits for it.
    public static let longestDelay = Duration.milliseconds(250)
    /// How many callers can wait in delays of their own at once.
    static let delaySlots = 64

    /// What a thread is sent off to do.
    public enum Errand: Equatable, Sendable {
        /// To wait, in the way that was chosen for callers.
        case wait(Duration)
        case call(GuestCall)
    }

    /// A thread that was sent off: a caller of the function, or one that was borrowed elsewhere.
    public struct Holder: Equatable, Sendable {
        public var slot: Int
        /// The thread's own registers, where it was stopped.
        public var registers: Registers
        /// Its vector registers, where those are kept too.
        public var vectors: VectorRegisters?
        /// Its stack pointer when it comes back to the entry.
        public var arrivalRSP: UInt64
        /// The call that it makes, if it makes one that somebody waits for.
        public var call: GuestCall?
        /// It has been told to go.
        public var isReleased = false

        /// It is in a function of the guest's, and has not its own registers when it comes back.
        public var isInDelay: Bool { arrivalRSP != registers.rsp }
    }

    /// The function's entry: where callers that wait come back to.
    public let entry: GuestVirtualAddress
    /// Where the breakpoint is: the entry, or the start of the inline detour's handler while its jump is there.
    public internal(set) var stopAddress: GuestVirtualAddress
    /// The jump at the function's entry, where there is one.
    public let inline: InlineDetour?
    public let effects: GuestEffects
    public let debugRegisters: DebugRegisterTable
    public private(set) var holders: [Holder] = []
    /// A thread whose registers are being changed, by its slot. Set outside of that, it was left so by an error.
    private var atWork: (holder: Holder, vcpu: VCPU)?

    private let memory: KernelMemory
    /// How callers wait that are held.
    public let waiting: WaitingWay
    private let means: WaitingMeans
    private let slack: GuestVirtualAddress?
    private let handler = DetourHandler()
    private var location: HandlerLocation?
    private var leaseByte: UInt8 = 1

    /// - Parameters:
    ///   - waiting: how callers that are held wait.
    ///   - slack: where the handler may be written, where callers wait in it.
    ///   - inline: the jump to intercept by; its handler begins with a stop point, and lies elsewhere in the slack.
    public init(
        entry: GuestVirtualAddress, effects: GuestEffects, debugRegisters: DebugRegisterTable, memory: KernelMemory,
        waiting: WaitingWay, slack: GuestVirtualAddress?, means: WaitingMeans, inline: InlineDetour? = nil
    ) {
        self.entry = entry
        self.inline = inline
        stopAddress = inline?.slack.address ?? entry
        self.effects = effects
        self.debugRegisters = debugRegisters
        self.memory = memory
        self.waiting = waiting
        self.slack = slack
        self.means = means
    }

    /// The handler is in the guest now.
    public var isHandlerPresent: Bool { location != nil }

    /// Whether an instruction pointer lies in the handler.
    public func isInHandler(_ rip: UInt64) -> Bool { location?.contains(rip) ?? false }

    // MARK: Arming

    /// Sets the breakpoint, then the jump that leads there, if there is to be one. The machine stands.
    public func arm() throws(DetourError) {
        let done = try control { () throws(HypervisorError) in try debugRegisters.acquire(.entry, stopSite) }
        if !done { throw .noDebugRegister }
        do throws(InlineDetourError) {
            try inline?.arm()
        } catch {
            try? disarm()
            throw .inline(error)
        }
    }

    /// Takes the breakpoint away. The machine stands, and nobody is held.
    public func disarm() throws(DetourError) {
        try control { () throws(HypervisorError) in try debugRegisters.release(.entry) }
    }

    /// Takes the jump out of the function again, if there is one. The machine stands, and nobody is held.
    /// - Returns: why the jump's handler had to stay; nil where nothing is left.
    public func removePatch() throws(DetourError) -> String? {
        do throws(InlineDetourError) {
            if case .handlerKept(let reason)? = try inline?.disarm() { return reason }
            return nil
        } catch {
            throw .inline(error)
        }
    }

    /// How the guest's functions are called.
    public var convention: CallingConvention { CallingConvention(KernelArchitecture(memory.pagingMode)) }

    private var stopSite: BreakpointSite { .execution(stopAddress) }

    /// Lets a caller that is stopped, and not held, go on into the function.
    /// - Returns: false where the first instruction's page was absent: the caller will be stopped again.
    @discardableResult
    public func stepOver(_ vcpu: VCPU) throws(DetourError) -> Bool {
        try control { () throws(HypervisorError) in
            try effects.stepOver(stopSite, on: vcpu)
            var rip = try effects.machine.registers(of: vcpu).rip
            guard let inline, stopAddress != entry else {
                // No first instruction of a function is a jump far away: what is not close behind the entry is
                // the kernel's page-fault handler, which will come back here.
                guard rip &- entry.rawValue &- 1 < 15 else { return false }
                try stepPastPatch(vcpu)
                return true
            }
            // The NOP cannot fault. The rest of the handler is stepped too, so that no interrupt finds a caller
            // there and its address on no stack.
            var steps = 0
            while inline.armed?.isInHandler(rip) == true, steps < InlineDetourPlan.maximumHandlerLength {
                try effects.step(vcpu)
                rip = try effects.machine.registers(of: vcpu).rip
                steps += 1
            }
            return true
        }
    }

    // MARK: Holding

    /// Sends off a caller that stands at the entry.
    /// - Parameter duration: how long it is going to wait, where that is known now.
    /// - Throws: with the caller as it was.
    public func hold(
        _ vcpu: VCPU, _ registers: Registers, for duration: Duration = longestDelay
    ) throws(DetourError) -> Holder {
        try hold(vcpu, registers, errand: .wait(duration))
    }

    /// Sends off a caller that stands at the entry, to wait or to make a call.
    /// - Throws: with the caller as it was.
    public func hold(
        _ vcpu: VCPU, _ registers: Registers, errand: Errand
    ) throws(DetourError) -> Holder {
        try demandWaitable(registers)
        if case .wait = errand, waiting == .handler {
            let holder = Holder(
                slot: try freeSlot(DetourHandler.slots), registers: registers, arrivalRSP: registers.rsp)
            try sendIntoHandler(vcpu, registers, slot: holder.slot)
            holders.append(holder)
            return holder
        }
        return try sendOff(vcpu, registers, vectors: nil, errand: errand)
    }

    /// Sends off a thread that was stopped elsewhere, with its vector registers kept: it comes back to the entry.
    /// - Throws: with the thread as it was.
    public func borrow(
        _ vcpu: VCPU, _ registers: Registers, for call: GuestCall
    ) throws(DetourError) -> Holder {
        try demandWaitable(registers)
        guard registers.privilegeLevel == 0 else { throw .cannotWait("it runs in user mode") }
        let vectors = try control { () throws(HypervisorError) in try effects.machine.vectorRegisters(of: vcpu) }
        return try sendOff(vcpu, registers, vectors: vectors, errand: .call(call))
    }

    private func demandWaitable(_ registers: Registers) throws(DetourError) {
        guard registers.interruptsEnabled else { throw .cannotWait("its interrupts are off") }
        guard let level = try? memory.interruptLevel(registers) else { throw .cannotWait("its IRQL is not known") }
        guard level == 0 else { throw .cannotWait("its IRQL is \(level)") }
    }

    private func freeSlot(_ count: Int) throws(DetourError) -> Int {
        guard let slot = (0..<count).first(where: { slot in !holders.contains { $0.slot == slot } })
        else { throw .noFreeSlot(slots: count) }
        return slot
    }

    private func sendOff(
        _ vcpu: VCPU, _ registers: Registers, vectors: VectorRegisters?, errand: Errand
    ) throws(DetourError) -> Holder {
        var holder = Holder(
            slot: try freeSlot(Self.delaySlots), registers: registers, vectors: vectors,
            arrivalRSP: convention.arrivalRSP(of: registers))
        try send(&holder, on: vcpu, current: registers, errand)
        holders.append(holder)
        return holder
    }

    private func send(
        _ holder: inout Holder, on vcpu: VCPU, current: Registers, _ errand: Errand
    ) throws(DetourError) {
        let caller = try guestCaller()
        let call: GuestCall
        switch errand {
        case .wait(let duration): call = try delay(min(duration, Self.longestDelay))
        case .call(let wanted): call = wanted
        }
        atWork = (holder, vcpu)
        do throws(DetourError) {
            try caller.send(
                ownRegisters(of: holder), holder.vectors, into: call, slot: holder.slot, on: vcpu, current: current)
            atWork = nil
        } catch {
            // Any other error left the caller as it was.
            if case .hypervisor = error { throw error }
            atWork = nil
            throw error
        }
        if case .call = errand { holder.call = call } else { holder.call = nil }
    }

    /// Gives a thread its own registers whose sending off, or taking back, an error has interrupted.
    /// The machine stands.
    public func finishInterruptedWork() throws(DetourError) {
        guard let (holder, vcpu) = atWork else { return }
        atWork = nil
        holders.removeAll { $0.slot == holder.slot }
        let current = try control { () throws(HypervisorError) in try effects.machine.registers(of: vcpu) }
        try guestCaller().putBack(
            ownRegisters(of: holder), holder.vectors, slot: holder.slot, on: vcpu, current: current)
    }

    private func guestCaller() throws(DetourError) -> GuestCaller {
        guard let push = means.push else { throw .cannotWait("no push instruction was found in the kernel") }
        return GuestCaller(
            entry: entry, stopAddress: stopAddress, push: push, effects: effects, memory: memory,
            convention: convention)
    }

    private func delay(_ duration: Duration) throws(DetourError) -> GuestCall {
        guard let function = means.delayFunction else {
            throw .cannotWait("the kernel's KeDelayExecutionThread was not found")
        }
        // KernelMode, not alertable, relative.
        return GuestCall(function, [.value(0), .value(0), .pointer(to: 0 &- duration.hundredNanoseconds)])
    }

    private func sendIntoHandler(_ vcpu: VCPU, _ registers: Registers, slot: Int) throws(DetourError) {
        let location = if let present = self.location { present } else { try writeHandler() }
        try setWaitByte(of: slot, to: 1, at: location)
        var inHandler = registers
        inHandler.rip = location.address.rawValue &+ UInt64(handler.stubOffset(slot: slot))
        try control { () throws(HypervisorError) in
            try effects.noteHold(HeldCaller(slot: slot, registers: registers.standing(at: entry)))
            try effects.setRegisters(of: vcpu, from: registers, to: inHandler)
        }
    }

    /// Tells a held caller to go. The machine need not stand: it is one byte, or none where the caller comes
    /// back from its delay anyway.
    public func release(slot: Int) throws(DetourError) {
        guard let index = holders.firstIndex(where: { $0.slot == slot }) else { return }
        if !holders[index].isInDelay {
            guard let location else { return }
            try setWaitByte(of: slot, to: 0, at: location)
        }
        holders[index].isReleased = true
    }

    /// The held caller that stands at the entry again with these registers, if it is one.
    public func returningHolder(_ registers: Registers) -> Holder? {
        guard registers.rip == stopAddress.rawValue else { return nil }
        return holders.first { $0.arrivalRSP == registers.rsp }
    }

    /// Sends a thread off again, to wait or to make a call. The machine stands.
    /// - Returns: false where that is not possible, or not called for: it has to be taken back then.
    public func sendAgain(
        _ holder: Holder, _ vcpu: VCPU, _ registers: Registers, errand: Errand
    ) throws(DetourError) -> Bool {
        guard holder.isInDelay, let index = holders.firstIndex(where: { $0.slot == holder.slot }) else { return false }
        do throws(DetourError) {
            var again = holders[index]
            try send(&again, on: vcpu, current: registers, errand)
            holders[index] = again
            return true
        } catch {
            if case .hypervisor = error { throw error }
            return false
        }
    }

    /// Takes a caller back that stands at the entry again: it has its own registers then. With the last one
    /// out of the handler, the handler goes too. The machine stands.
    public func takeBack(_ holder: Holder, _ vcpu: VCPU, _ registers: Registers) throws(DetourError) {
        holders.removeAll { $0.slot == holder.slot }
        if holder.isInDelay {
            atWork = (holder, vcpu)
            try guestCaller().takeBack(
                ownRegisters(of: holder), holder.vectors, slot: holder.slot, on: vcpu, current: registers)
            atWork = nil
        } else {
            try control { () throws(HypervisorError) in try effects.noteRelease(slot: holder.slot) }
            if holders.isEmpty { try zeroHandler() }
        }
    }

    /// Takes the handler out, if nobody is in it. The machine stands.
    public func removeUnusedHandler() throws(DetourError) {
        if holders.isEmpty { try zeroHandler() }
    }

    /// Tells waiting callers that Vigil lives. To be called well within `leaseLimit`.
    public func renewLease() throws(DetourError) {
        guard let location else { return }
        leaseByte = leaseByte == .max ? 1 : leaseByte + 1
        try modifyPublicData(.lease, to: [leaseByte], at: location)
    }

    /// The machine was reset: whoever was held is gone, and so is the handler.
    public func forgetEverything() throws(DetourError) {
        let slots = holders.map(\.slot)
        holders = []
        atWork = nil
        location = nil
        inline?.forgetEverything()
        try control { () throws(HypervisorError) in
            if inline != nil { try effects.notePatch(nil) }
            for slot in slots { try effects.noteRelease(slot: slot) }
            try effects.noteHandler(nil)
        }
    }

    /// The guest's bytes that the detour has replaced, as they are at this moment.
    public var ownPatches: [CodePatch.Place] {
        var places: [CodePatch.Place] = []
        if let location {
            var found = [UInt8](repeating: 0, count: location.length)
            let isRead: Void? = try? found.withUnsafeMutableBytes {
                try memory.physical.read(at: location.physical, into: $0)
            }
            if isRead != nil {
                let zeroes = [UInt8](repeating: 0, count: location.length)
                places.append(CodePatch.Place(physical: location.physical, original: zeroes, patch: found))
            }
        }
        return places + (inline?.ownPatches ?? [])
    }

    // MARK: The handler's bytes

    private func writeHandler() throws(DetourError) -> HandlerLocation {
        guard let slack else { throw .cannotWait("the kernel's image has no room for the handler") }
        let found: [UInt8]
        let physical: GuestPhysicalAddress
        do throws(MemoryError) {
            // The slack is the tail of one page, so its bytes are together in physical memory too.
            // The processor's own view: the handler is to be executed.
            found = try memory.hardware.bytes(at: slack, count: UInt64(DetourHandler.length), maximum: 4096)
            physical = try memory.hardware.translate(slack).physical
        } catch {
            throw .memory(error, doing: "looking at the kernel's slack")
        }
        guard found.allSatisfy({ $0 == 0 }) else { throw .slackInUse(slack) }
        let location = HandlerLocation(
            entry: entry, address: slack, physical: physical, length: DetourHandler.length,
            waitOffset: handler.range(of: .spinWait).lowerBound)
        var filled = handler
        filled.set(.entry, to: entry.rawValue)
        filled.set(.sharedData, to: means.sharedData?.rawValue ?? 0)
        filled.set(.leaseLimit, to: Self.leaseLimit.hundredNanoseconds)
        filled.set(.delayFunction, to: means.delayFunction?.rawValue ?? 0)
        filled.set(.delayInterval, to: 0 &- Self.delayInterval.hundredNanoseconds)
        try control { () throws(HypervisorError) in
            try effects.noteHandler(location)
            try effects.writeCode(filled.bytes, at: physical)
        }
        self.location = location
        return location
    }

    private func zeroHandler() throws(DetourError) {
        guard let location else { return }
        let isThere = isHandlerThere(location)
        try control { () throws(HypervisorError) in
            // A guest that was reset has something else there, and nobody may have said so yet.
            if isThere { try effects.writeCode([UInt8](repeating: 0, count: location.length), at: location.physical) }
            try effects.noteHandler(nil)
        }
        self.location = nil
    }

    /// Whether the handler's code, as it was written, is still where it was written to.
    private func isHandlerThere(_ location: HandlerLocation) -> Bool {
        var found = [UInt8](repeating: 0, count: location.length)
        do throws(MemoryError) {
            try found.withUnsafeMutableBufferPointer { (buffer) throws(MemoryError) in
                try memory.physical.read(at: location.physical, into: UnsafeMutableRawBufferPointer(buffer))
            }
        } catch {
            return false
        }
        let data = DetourHandler.PublicData.allCases.map { handler.range(of: $0) }
        return found.indices.allSatisfy { index in
            found[index] == handler.bytes[index] || data.contains { $0.contains(index) }
        }
    }

    private func setWaitByte(of slot: Int, to value: UInt8, at location: HandlerLocation) throws(DetourError) {
        let offset = handler.range(of: .spinWait).lowerBound + slot
        try control { () throws(HypervisorError) in
            try effects.writeData([value], at: location.physical + UInt64(offset))
        }
    }

    /// Changes public data of the handler in place; fewer bytes than it has are allowed, more are not.
    private func modifyPublicData(
        _ data: DetourHandler.PublicData, to bytes: [UInt8], at location: HandlerLocation
    ) throws(DetourError) {
        let range = handler.range(of: data)
        guard bytes.count <= range.count else {
            throw .invalidDataSize(data, size: bytes.count, allowed: range.count)
        }
        try control { () throws(HypervisorError) in
            try effects.writeData(bytes, at: location.physical + UInt64(range.lowerBound))
        }
    }
}

extension Registers {
    /// The same, standing elsewhere.
    func standing(at address: GuestVirtualAddress) -> Registers {
        var registers = self
        registers.rip = address.rawValue
        return registers
    }
}

extension Duration {
    /// In units of 100 ns, as Windows counts time; 0 where negative.
    var hundredNanoseconds: UInt64 {
        let (seconds, attoseconds) = components
        return UInt64(clamping: seconds) &* 10_000_000 &+ UInt64(clamping: attoseconds / 100_000_000_000)
    }
}
