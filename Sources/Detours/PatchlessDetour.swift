import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// What the guest offers a waiting caller.
public struct WaitingMeans: Equatable, Sendable {
    /// The guest's `KeDelayExecutionThread`; without it, a caller spins.
    public var delayFunction: GuestVirtualAddress?
    /// The guest's shared user data, for the lease.
    public var sharedData: GuestVirtualAddress?

    public init(delayFunction: GuestVirtualAddress?, sharedData: GuestVirtualAddress?) {
        self.delayFunction = delayFunction
        self.sharedData = sharedData
    }
}

/// Interception of a guest function that changes nothing in the guest while it is merely armed.
///
/// A breakpoint stands on the function's entry. A caller that is not held is stepped over it. A caller that
/// is to wait is sent into the handler, which is written for that purpose into zeroed slack of the kernel's
/// image, comes back to the entry when it may go, and is recognised there by its stack pointer; the handler
/// is zeroed when nobody is in it.
public final class PatchlessDetour {
    /// The guest's own time that callers wait without a sign of life before they go by themselves.
    public static let leaseLimit = Duration.seconds(2)
    /// How long one of the waiting caller's naps is.
    public static let delayInterval = Duration.milliseconds(5)

    /// A caller in the handler.
    public struct Holder: Equatable, Sendable {
        public var slot: Int
        /// The caller's registers at the entry, as they are there again when it comes back.
        public var registers: Registers
        /// Its wait byte has been cleared.
        public var isReleased = false
    }

    public let entry: GuestVirtualAddress
    public let effects: GuestEffects
    public let debugRegisters: DebugRegisterTable
    public private(set) var holders: [Holder] = []

    private let memory: KernelMemory
    private let means: WaitingMeans
    private let slack: GuestVirtualAddress?
    private let handler = DetourHandler()
    private var location: HandlerLocation?
    private var leaseByte: UInt8 = 1

    /// - Parameters:
    ///   - slack: where the handler may be written; without it callers cannot be held.
    public init(
        entry: GuestVirtualAddress, effects: GuestEffects, debugRegisters: DebugRegisterTable, memory: KernelMemory,
        slack: GuestVirtualAddress?, means: WaitingMeans
    ) {
        self.entry = entry
        self.effects = effects
        self.debugRegisters = debugRegisters
        self.memory = memory
        self.slack = slack
        self.means = means
    }

    /// The handler is in the guest now.
    public var isHandlerPresent: Bool { location != nil }

    /// Whether an instruction pointer lies in the handler.
    public func isInHandler(_ rip: UInt64) -> Bool { location?.contains(rip) ?? false }

    // MARK: Arming

    /// Sets the breakpoint. The machine stands.
    public func arm() throws(DetourError) {
        let site = BreakpointSite.execution(entry)
        let done = try control { () throws(HypervisorError) in try debugRegisters.acquire(.entry, site) }
        if !done { throw .noDebugRegister }
    }

    /// Takes the breakpoint away. The machine stands, and nobody is held.
    public func disarm() throws(DetourError) {
        try control { () throws(HypervisorError) in try debugRegisters.release(.entry) }
    }

    /// Lets a caller that stands at the entry, and is not held, go on into the function.
    public func stepOver(_ vcpu: VCPU) throws(DetourError) {
        try control { () throws(HypervisorError) in try effects.stepOver(.execution(entry), on: vcpu) }
    }

    // MARK: Holding

    /// Sends a caller that stands at the entry into the handler, where it waits until released.
    /// - Throws: before anything of the caller was changed.
    public func hold(_ vcpu: VCPU, _ registers: Registers) throws(DetourError) -> Holder {
        guard registers.interruptsEnabled else { throw .cannotWait("its interrupts are off") }
        guard registers.control.cr8 == 0 else { throw .cannotWait("its IRQL is \(registers.control.cr8)") }
        guard let slot = (0..<DetourHandler.slots).first(where: { slot in !holders.contains { $0.slot == slot } })
        else { throw .noFreeSlot }

        let location = if let present = self.location { present } else { try writeHandler() }
        try setWaitByte(of: slot, to: 1, at: location)
        let holder = Holder(slot: slot, registers: registers)
        var inHandler = registers
        inHandler.rip = location.address.rawValue &+ UInt64(handler.stubOffset(slot: slot))
        try control { () throws(HypervisorError) in
            try effects.noteHold(HeldCaller(slot: slot, registers: registers))
            try effects.setRegisters(of: vcpu, from: registers, to: inHandler)
        }
        holders.append(holder)
        return holder
    }

    /// Tells a held caller to go. The machine need not stand: it is one byte.
    public func release(slot: Int) throws(DetourError) {
        guard let index = holders.firstIndex(where: { $0.slot == slot }), let location else { return }
        try setWaitByte(of: slot, to: 0, at: location)
        holders[index].isReleased = true
    }

    /// The held caller that stands at the entry again with these registers, if it is one.
    public func returningHolder(_ registers: Registers) -> Holder? {
        guard registers.rip == entry.rawValue else { return nil }
        return holders.first { $0.registers.rsp == registers.rsp }
    }

    /// Notes that a caller came out of the handler. With the last one gone, the handler goes too.
    /// The machine stands.
    public func noteReturn(of holder: Holder) throws(DetourError) {
        holders.removeAll { $0.slot == holder.slot }
        try control { () throws(HypervisorError) in try effects.noteRelease(slot: holder.slot) }
        if holders.isEmpty { try zeroHandler() }
    }

    /// Takes the handler out, if nobody is in it. The machine stands.
    public func removeUnusedHandler() throws(DetourError) {
        if holders.isEmpty { try zeroHandler() }
    }

    /// Tells waiting callers that Vigil lives. To be called well within `leaseLimit`.
    public func renewLease() throws(DetourError) {
        guard let location, !holders.isEmpty else { return }
        leaseByte = leaseByte == .max ? 1 : leaseByte + 1
        try modifyPublicData(.lease, to: [leaseByte], at: location)
    }

    /// The machine was reset: whoever was held is gone, and so is the handler.
    public func forgetEverything() throws(DetourError) {
        let slots = holders.map(\.slot)
        holders = []
        location = nil
        try control { () throws(HypervisorError) in
            for slot in slots { try effects.noteRelease(slot: slot) }
            try effects.noteHandler(nil)
        }
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
        try control { () throws(HypervisorError) in
            try effects.writeCode([UInt8](repeating: 0, count: location.length), at: location.physical)
            try effects.noteHandler(nil)
        }
        self.location = nil
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

extension Duration {
    /// In units of 100 ns, as Windows counts time; 0 where negative.
    var hundredNanoseconds: UInt64 {
        let (seconds, attoseconds) = components
        return UInt64(clamping: seconds) &* 10_000_000 &+ UInt64(clamping: attoseconds / 100_000_000_000)
    }
}
