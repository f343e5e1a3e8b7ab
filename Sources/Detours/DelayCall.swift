import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// Lets callers of an intercepted function wait in the guest's own `KeDelayExecutionThread`, without a byte
/// written to the guest.
///
/// The caller stands at the function's entry. It is given the registers of a call of the delay function, with
/// the entry as return address, so that it comes back to the entry's breakpoint when the time is over; then it
/// gets its own registers back, or the next delay. The two values that have to be on its stack, the interval
/// and the return address, are pushed there by an instruction of the guest, below the caller's frame, where
/// the function itself would have put its own. What a called function need not preserve and Vigil does not
/// put back (the vector registers XMM0 to XMM5) holds nothing at the entry of a function of integers.
///
///     the caller's stack pointer →  return address of the caller
///                            -0x08  interval
///                            -0x28  home space of the delay function (four words, its own)
///                            -0x30  the entry: the delay function's return address
struct DelayCall {
    /// From the caller's stack pointer down to where it is when the delay function has returned.
    static let arrivalOffset: UInt64 = 0x28
    private static let returnAddressOffset: UInt64 = 0x30
    private static let intervalOffset: UInt64 = 0x08

    /// How often a push is stepped over: QEMU can end a step for business of its own, with nothing executed.
    private static let stepAttempts = 8

    /// The function's entry, where the delay returns to. Where an inline detour is armed, the jump there leads on to
    /// where callers are stopped; where it is not any more, the caller is at the function all the same.
    let entry: GuestVirtualAddress
    let function: GuestVirtualAddress
    let push: PushInstruction
    let effects: GuestEffects
    let memory: KernelMemory

    /// Sends a caller off.
    /// - Parameters:
    ///   - caller: its registers where it is stopped.
    ///   - current: the vCPU's registers now: these, or those that it came back from a delay with.
    /// - Throws: `cannotWait`, with the caller's registers as they were.
    func send(
        _ caller: Registers, slot: Int, on vcpu: VCPU, current: Registers, for interval: Duration
    ) throws(DetourError) {
        let returnSlot = caller.rsp &- Self.returnAddressOffset
        let intervalSlot = caller.rsp &- Self.intervalOffset
        let wanted = 0 &- interval.hundredNanoseconds
        // A push that faults could not be taken back.
        for place in [returnSlot, intervalSlot] { try demandStack(place) }
        try announceWork(on: caller, slot: slot, vcpu)
        var registers = current
        for (place, value) in [(intervalSlot, wanted), (returnSlot, entry.rawValue)] where value != word(at: place) {
            try self.push(value, to: place, on: vcpu, &registers)
            guard registers.rip == push.address.rawValue &+ 1, registers.rsp == place, word(at: place) == value else {
                try putBack(caller, slot: slot, on: vcpu, current: registers)
                throw .cannotWait("a push of the guest's own did not push")
            }
        }
        var calling = caller
        calling.rip = function.rawValue
        calling.rsp = returnSlot
        calling.rcx = 0  // KernelMode
        calling.rdx = 0  // not alertable
        calling.r8 = intervalSlot
        try control { () throws(HypervisorError) in
            try effects.setRegisters(of: vcpu, from: registers, to: calling)
            try effects.noteSentOff(slot: slot)
        }
    }

    /// Gives a caller that stands at the entry again its own registers back.
    func takeBack(_ caller: Registers, slot: Int, on vcpu: VCPU, current: Registers) throws(DetourError) {
        try announceWork(on: caller, slot: slot, vcpu)
        try putBack(caller, slot: slot, on: vcpu, current: current)
    }

    /// Its registers are known to the guardian before any of them changes.
    private func announceWork(on caller: Registers, slot: Int, _ vcpu: VCPU) throws(DetourError) {
        let delay = HeldCaller.Delay(entry: entry, arrivalRSP: caller.rsp &- Self.arrivalOffset, vcpu: vcpu)
        try control { () throws(HypervisorError) in
            try effects.noteHold(HeldCaller(slot: slot, registers: caller.standing(at: entry), delay: delay))
        }
    }

    private func putBack(_ caller: Registers, slot: Int, on vcpu: VCPU, current: Registers) throws(DetourError) {
        try control { () throws(HypervisorError) in
            try effects.setRegisters(of: vcpu, from: current, to: caller)
            try effects.noteRelease(slot: slot)
        }
    }

    /// Lets the guest push a value. Afterwards `registers` are the vCPU's.
    private func push(
        _ value: UInt64, to place: UInt64, on vcpu: VCPU, _ registers: inout Registers
    ) throws(DetourError) {
        var pushing = registers
        pushing.rip = push.address.rawValue
        pushing.rsp = place &+ 8
        pushing[keyPath: push.register] = value
        let before = registers
        registers = try control { () throws(HypervisorError) in
            try effects.setRegisters(of: vcpu, from: before, to: pushing)
            var after = pushing
            for _ in 0..<Self.stepAttempts where after.rip == pushing.rip {
                try effects.step(vcpu)
                after = try effects.machine.registers(of: vcpu)
            }
            return after
        }
    }

    private func demandStack(_ place: UInt64) throws(DetourError) {
        guard let translation = try? memory.hardware.translate(GuestVirtualAddress(place)), translation.isWritable
        else { throw .cannotWait("its stack is not there below its stack pointer") }
    }

    private func word(at place: UInt64) -> UInt64? {
        try? memory.hardware.load(UInt64.self, at: GuestVirtualAddress(place))
    }
}
