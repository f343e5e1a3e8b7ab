import GuestMemory
import X86

/// The small functions that carry a system call's number.
public enum SystemCallStub {
    /// Stubs have up to eight instructions.
    private static let maximumInstructions = 12

    /// The number in a user-mode stub: EAX is loaded with it, then the kernel is called.
    ///
    /// Known shapes (public disassemblies of ntdll): on x64 `mov r10, rcx; mov eax, N`, then a SYSCALL on some path.
    /// On x86 `mov eax, N`, then `mov edx, 7FFE0300h; call edx` or `call [edx]` (XP to 7), a call of a
    /// `mov edx, esp; sysenter` (8), `mov edx, function; call edx` (10), `lea edx, [esp+4]; int 2Eh` (2000), or
    /// `call fs:[C0h]` (32-bit ntdll of 64-bit Windows).
    /// - Throws: `unexpectedCode` where it is anything else, a hook for instance.
    static func userNumber(
        of name: String, at address: GuestVirtualAddress, in memory: KernelMemory, architecture: KernelArchitecture
    ) throws(DiscoveryError) -> UInt32 {
        let reader = CodeReader(memory, architecture: architecture)
        var stub = UserStub(architecture: architecture)
        var next = address
        for _ in 0..<maximumInstructions {
            let here = next
            let decoded = try reading("\(name) of ntdll at \(address)") { () throws(MemoryError) in
                try reader.instruction(at: here)
            }
            guard let instruction = decoded else { break }
            switch stub.take(instruction) {
            case .goesOn: break
            case .callsKernel(let number): return number
            case .calls(let target):
                let entersKernel = try reading("the system call of \(name) at \(target)") { () throws(MemoryError) in
                    try isSystemEntry(at: target, reader: reader)
                }
                guard entersKernel, let number = stub.number else {
                    throw .unexpectedCode(function: name, at: address, "it calls \(target): it is hooked")
                }
                return number
            case .isForeign:
                throw .unexpectedCode(
                    function: name, at: address,
                    "\(instruction.mnemonic) is no part of a system-call stub: it is hooked")
            }
            next = GuestVirtualAddress(instruction.nextAddress)
        }
        throw .unexpectedCode(function: name, at: address, "it is no system-call stub")
    }

    /// `mov edx, esp; sysenter`: KiFastSystemCall, which Windows 8 has beside its stubs.
    private static func isSystemEntry(
        at address: GuestVirtualAddress, reader: CodeReader
    ) throws(MemoryError) -> Bool {
        guard let first = try reader.instruction(at: address), first.mnemonic == .mov,
            first.destination?.whole == .rdx, first.operands[1].register?.whole == .rsp
        else { return false }
        return try reader.instruction(at: GuestVirtualAddress(first.nextAddress))?.mnemonic == .sysenter
    }

    /// What a kernel-mode (Zw) stub says.
    public struct Kernel: Hashable, Sendable {
        public var address: GuestVirtualAddress
        public var number: UInt32
        /// KiServiceInternal (x64) or KiSystemService (x86): where every such stub goes.
        public var serviceEntry: GuestVirtualAddress
    }

    /// Decodes a Zw stub.
    ///
    /// On x64 the return frame is pushed, then `mov eax, NUMBER; jmp KiServiceInternal`:
    /// `48 8B C4 FA 48 83 EC 10 50 9C 6A 10 48 8D 05 rel32 50 B8 imm32 E9 rel32`. On x86 `mov eax, NUMBER;
    /// lea edx, [esp+4]; pushfd; push 8; call KiSystemService; ret n`:
    /// `B8 imm32 8D 54 24 04 9C 6A 08 E8 rel32 C2 imm16`.
    /// - Returns: nil where the function has another shape.
    static func kernel(at address: GuestVirtualAddress, reader: CodeReader) throws(MemoryError) -> Kernel? {
        var number: UInt32?
        var hasFrame = false
        var next = address
        for _ in 0..<16 {
            guard let instruction = try reader.instruction(at: next) else { return nil }
            next = GuestVirtualAddress(instruction.nextAddress)
            let target = instruction.relativeTarget.map { GuestVirtualAddress($0) }
            switch instruction.mnemonic {
            case .jmp where reader.architecture == .x64:
                guard let number, let target, hasFrame else { return nil }
                return Kernel(address: address, number: number, serviceEntry: target)
            case .call where reader.architecture == .x86:
                guard let number, let target, hasFrame, try reader.instruction(at: next)?.isReturn == true else {
                    return nil
                }
                return Kernel(address: address, number: number, serviceEntry: target)
            case .mov where instruction.destination == .eax:
                guard let immediate = instruction.operands[1].immediate, immediate <= 0xffff else { return nil }
                number = UInt32(immediate)
            case .pushfq, .pushfd: hasFrame = true
            case .mov where instruction.operands[1].register?.whole == .rsp,
                .mov where instruction.operands[0].register == instruction.operands[1].register,
                .lea, .push, .cli, .sub, .nop, .endbr64, .endbr32:
                break
            default:
                return nil
            }
        }
        return nil
    }
}

/// A user-mode stub as far as it was decoded.
private struct UserStub {
    enum Step {
        case goesOn
        case callsKernel(number: UInt32)
        /// A function that has to be looked into.
        case calls(GuestVirtualAddress)
        /// No stub has such an instruction there.
        case isForeign
    }

    let architecture: KernelArchitecture
    var number: UInt32?
    /// x64: R10 holds what was in RCX.
    private var hasArgument = false
    /// x86: EDX holds an address in the code or data that calls the kernel, or one on the stack.
    private var edx: Pointer?

    private enum Pointer { case fixed, stack }

    init(architecture: KernelArchitecture) { self.architecture = architecture }

    mutating func take(_ instruction: Instruction) -> Step {
        let (target, source) = (instruction.operands[0], instruction.operands[1])
        switch instruction.mnemonic {
        case .nop, .endbr32, .endbr64: return .goesOn
        case .mov where instruction.destination == .eax && number == nil:
            // Above 16 bits a 32-bit ntdll of 64-bit Windows keeps how its arguments are to be extended.
            number = source.immediate.map { UInt32(truncatingIfNeeded: $0) }
            guard let number, architecture == .x86 || number <= 0xffff else { return .isForeign }
            return .goesOn
        default: return architecture == .x64 ? take64(instruction) : take32(instruction, target, source)
        }
    }

    private mutating func take64(_ instruction: Instruction) -> Step {
        switch instruction.mnemonic {
        case .mov where instruction.destination == .r10 && instruction.operands[1].register == .rcx:
            hasArgument = true
            return .goesOn
        // test byte ptr [SharedUserData.SystemCall], 1; jne to an INT 2E: since Windows 10.
        case .test where number != nil: return .goesOn
        case _ where instruction.isConditionalJump && number != nil: return .goesOn
        case .syscall:
            guard let number, hasArgument else { return .isForeign }
            return .callsKernel(number: number)
        default: return .isForeign
        }
    }

    private mutating func take32(_ instruction: Instruction, _ target: Operand, _ source: Operand) -> Step {
        guard let number else { return .isForeign }
        let call = Step.callsKernel(number: number & 0xffff)
        switch instruction.mnemonic {
        case .mov where target.register?.whole == .rdx && source.immediate != nil:
            edx = .fixed
            return .goesOn
        case .mov where target.register?.whole == .rdx && source.register?.whole == .rsp,
            .lea where target.register?.whole == .rdx && source.memory?.isField(ofWhole: .rsp) == true:
            edx = .stack
            return .goesOn
        // What WoW64 is told of the arguments.
        case .xor where target.register?.whole == .rcx && target == source: return .goesOn
        case .mov where target.register?.whole == .rcx && source.immediate != nil: return .goesOn
        case .sysenter where edx == .stack: return call
        case .int where edx == .stack && target.immediate == 0x2e: return call
        case .call:
            if let function = instruction.relativeTarget { return .calls(GuestVirtualAddress(function)) }
            if target.register?.whole == .rdx, edx == .fixed { return call }
            guard let memory = target.memory else { return .isForeign }
            if memory.isField(ofWhole: .rdx), memory.displacement == 0, edx == .fixed { return call }
            // The gate to 64-bit code: TEB.WOW32Reserved.
            let isGate = memory.segment == .fs && memory.base == nil && memory.index == nil
            return isGate && memory.displacement == 0xc0 ? call : .isForeign
        default: return .isForeign
        }
    }
}
