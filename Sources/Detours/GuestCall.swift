import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// A call of a function of the guest's, for a thread to make that Vigil has borrowed.
public struct GuestCall: Equatable, Sendable {
    public enum Argument: Equatable, Sendable {
        case value(UInt64)
        /// The address of a 64-bit value, which lies on the thread's stack. One argument can be such.
        case pointer(to: UInt64)
    }

    public var function: GuestVirtualAddress
    /// Four at most: as many as travel in registers on x64.
    public var arguments: [Argument]
    /// What would be nobody's if Vigil died while the thread is away.
    public var owed: OwedBlock?

    public init(_ function: GuestVirtualAddress, _ arguments: [Argument], owed: OwedBlock? = nil) {
        self.function = function
        self.arguments = arguments
        self.owed = owed
    }
}

/// Sends threads into functions of the guest, and gives them their registers back, without a write of Vigil's to the
/// guest's memory.
///
/// The thread stands where Vigil stopped it. It is given the registers of the call, with the intercepted function's
/// entry as return address, so that it comes back to the entry's breakpoint; then it gets its own registers back, or
/// another call. The values that have to be on its stack are pushed there by an instruction of the guest, below what
/// the thread has there itself; where, `CallingConvention` says.
///
/// At the intercepted function's entry the vector registers that a function need not preserve (XMM0 to XMM5) hold
/// nothing; of threads stopped elsewhere they are put back too.
struct GuestCaller {
    /// How often a push is stepped over: QEMU can end a step for business of its own, with nothing executed.
    private static let stepAttempts = 8

    /// Where the calls return to. Where an inline detour is armed, the jump there leads on to where callers are
    /// stopped; where it is not any more, the caller is at the function all the same.
    let entry: GuestVirtualAddress
    /// Where callers of the function are stopped.
    let stopAddress: GuestVirtualAddress
    let push: PushInstruction
    let effects: GuestEffects
    let memory: KernelMemory
    let convention: CallingConvention

    /// Sends a thread off.
    /// - Parameters:
    ///   - thread: its own registers, where it was stopped.
    ///   - vectors: its vector registers, where those have to be kept.
    ///   - current: the vCPU's registers now: these, or those that it came back from another call with.
    /// - Throws: `cannotWait`, with the thread's registers as they were.
    func send(
        _ thread: Registers, _ vectors: VectorRegisters?, into call: GuestCall, slot: Int, on vcpu: VCPU,
        current: Registers
    ) throws(DetourError) {
        let frame = convention.frame(of: call, for: thread, returningTo: entry.rawValue)
        // A push that faults could not be taken back.
        for (place, _) in frame.words { try demandStack(place) }
        try announceWork(on: thread, vectors, slot: slot, vcpu, call.owed)
        var registers = current
        for (place, value) in frame.words where value != word(at: place) {
            try self.push(value, to: place, on: vcpu, &registers)
            guard registers.rip == push.address.rawValue &+ 1, registers.rsp == place, word(at: place) == value else {
                try putBack(thread, vectors, slot: slot, on: vcpu, current: registers)
                throw .cannotWait("a push of the guest's own did not push")
            }
        }
        try control { () throws(HypervisorError) in
            try effects.setRegisters(of: vcpu, from: registers, to: frame.registers)
            try effects.noteSentOff(slot: slot)
        }
    }

    /// Gives a thread that has come back its own registers.
    func takeBack(
        _ thread: Registers, _ vectors: VectorRegisters?, slot: Int, on vcpu: VCPU, current: Registers
    ) throws(DetourError) {
        try announceWork(on: thread, vectors, slot: slot, vcpu, nil)
        try putBack(thread, vectors, slot: slot, on: vcpu, current: current)
    }

    /// Its registers are known to the guardian before any of them changes.
    private func announceWork(
        on thread: Registers, _ vectors: VectorRegisters?, slot: Int, _ vcpu: VCPU, _ owed: OwedBlock?
    ) throws(DetourError) {
        // Whoever takes over after Vigil has put the function back before.
        let registers = thread.rip == stopAddress.rawValue ? thread.standing(at: entry) : thread
        let delay = HeldCaller.Delay(
            entry: entry, arrivalRSP: convention.arrivalRSP(of: thread), vcpu: vcpu, owed: owed)
        try control { () throws(HypervisorError) in
            try effects.noteHold(HeldCaller(slot: slot, registers: registers, delay: delay, vectors: vectors))
        }
    }

    func putBack(
        _ thread: Registers, _ vectors: VectorRegisters?, slot: Int, on vcpu: VCPU, current: Registers
    ) throws(DetourError) {
        try control { () throws(HypervisorError) in
            try effects.setRegisters(of: vcpu, from: current, to: thread)
            if let vectors { try effects.setVectorRegisters(of: vcpu, to: vectors) }
            try effects.noteRelease(slot: slot)
        }
    }

    /// Lets the guest push a value. Afterwards `registers` are the vCPU's.
    private func push(
        _ value: UInt64, to place: UInt64, on vcpu: VCPU, _ registers: inout Registers
    ) throws(DetourError) {
        var pushing = registers
        pushing.rip = push.address.rawValue
        pushing.rsp = place &+ convention.wordSize
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
        try? memory.hardware.word(at: GuestVirtualAddress(place))
    }
}
