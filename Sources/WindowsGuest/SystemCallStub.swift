import GuestMemory
import X86

/// The small functions that carry a system call's number.
public enum SystemCallStub {
    /// The number in a user-mode stub: `mov r10, rcx; mov eax, NUMBER`, then a SYSCALL on some path.
    /// - Throws: `unexpectedCode` where it is anything else, a hook for instance.
    static func userNumber(
        of name: String, at address: GuestVirtualAddress, in memory: KernelMemory
    ) throws(DiscoveryError) -> UInt32 {
        let reader = CodeReader(memory)
        var number: UInt32?
        var next = address
        for step in 0..<8 {
            let here = next
            let decoded = try reading("\(name) of ntdll at \(address)") { () throws(MemoryError) in
                try reader.instruction(at: here)
            }
            guard let instruction = decoded else { break }
            switch (step, instruction.mnemonic) {
            case (0, .mov) where instruction.destination == .r10 && instruction.operands[1].register == .rcx: break
            case (1, .mov) where instruction.destination == .eax:
                number = instruction.operands[1].immediate.map { UInt32(truncatingIfNeeded: $0) }
            case (2..., .syscall):
                guard let number, number <= 0xffff else { break }
                return number
            // test byte ptr [SharedUserData.SystemCall], 1; jne to an INT 2E: since Windows 10.
            case (2..., .test): break
            case (2..., _) where instruction.isConditionalJump: break
            default:
                throw .unexpectedCode(
                    function: name, at: address,
                    "\(instruction.mnemonic) is no part of a system-call stub: it is hooked")
            }
            next = GuestVirtualAddress(instruction.nextAddress)
        }
        throw .unexpectedCode(function: name, at: address, "it is no system-call stub")
    }

    /// What a kernel-mode (Zw) stub says.
    public struct Kernel: Hashable, Sendable {
        public var address: GuestVirtualAddress
        public var number: UInt32
        /// KiServiceInternal: where every such stub jumps to.
        public var serviceEntry: GuestVirtualAddress
    }

    /// Decodes a Zw stub: the return frame pushed, `mov eax, NUMBER; jmp KiServiceInternal`.
    ///
    /// The real bytes are `48 8B C4 FA 48 83 EC 10 50 9C 6A 10 48 8D 05 rel32 50 B8 imm32 E9 rel32`.
    /// - Returns: nil where the function has another shape.
    static func kernel(at address: GuestVirtualAddress, reader: CodeReader) throws(MemoryError) -> Kernel? {
        var number: UInt32?
        var next = address
        for _ in 0..<16 {
            guard let instruction = try reader.instruction(at: next) else { return nil }
            switch instruction.mnemonic {
            case .jmp:
                guard let number, let target = instruction.relativeTarget else { return nil }
                return Kernel(address: address, number: number, serviceEntry: GuestVirtualAddress(target))
            case .mov where instruction.destination == .eax:
                guard let immediate = instruction.operands[1].immediate, immediate <= 0xffff else { return nil }
                number = UInt32(immediate)
            case .mov where instruction.operands[1].register == .rsp,
                .lea, .push, .pushfq, .cli, .sub, .nop, .endbr64:
                break
            default:
                return nil
            }
            next = GuestVirtualAddress(instruction.nextAddress)
        }
        return nil
    }
}
