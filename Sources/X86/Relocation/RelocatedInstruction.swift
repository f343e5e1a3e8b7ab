/// One instruction of a prologue, and how it is written elsewhere.
///
/// Opcodes are those of Intel SDM volume 2: E8 CALL, E9 and EB JMP, 70 to 7F and 0F 80 to 0F 8F Jcc, E0 to E3
/// LOOPNE, LOOPE, LOOP and JrCXZ.
struct RelocatedInstruction {
    enum Form {
        /// As it is.
        case copied
        /// With another displacement, which is the four bytes at `offset`.
        case displaced(offset: Int, target: UInt64)
        /// Prefixes and opcode, and a distance of 32 bits behind them.
        case branch(opcode: [UInt8], target: UInt64)
        /// Prefixes and opcode of a branch that has no form with 32 bits, for which it takes three instructions:
        /// the branch itself to the third, a jump over the third, and a jump to the target.
        case shortBranch(opcode: [UInt8], target: UInt64)
    }

    var instruction: Instruction
    var bytes: [UInt8]
    var form: Form

    var length: Int {
        switch form {
        case .copied, .displaced: bytes.count
        case .branch(let opcode, _): opcode.count + 4
        case .shortBranch(let opcode, _): opcode.count + 1 + 2 + 5
        }
    }

    /// Where a RIP within the copy would stand in the original, by its distance from the copy's start.
    var originals: [(offset: Int, address: UInt64)] {
        guard case .shortBranch(let opcode, let target) = form else { return [(0, instruction.address)] }
        let skip = opcode.count + 1
        // Behind the branch it is decided: on the skipping jump against it, on the last jump for it.
        return [(0, instruction.address), (skip, instruction.nextAddress), (skip + 2, target)]
    }

    /// - Parameter replaced: the addresses of all instructions that are moved.
    init(
        _ instruction: Instruction, bytes: [UInt8], mode: DecodingMode, replaced: Range<UInt64>
    ) throws(PrologueRefusal) {
        self.instruction = instruction
        self.bytes = bytes
        let (mnemonic, address) = (instruction.mnemonic, instruction.address)
        guard let layout = InstructionLayout(of: bytes, mode: mode) else { throw .undecodable(at: address) }
        if layout.isFar { throw .unsupportedBranch(mnemonic, at: address) }
        if mnemonic == .syscall || mnemonic == .sysenter || instruction.flow == .interrupt {
            throw .tellsItsAddress(mnemonic, at: address)
        }
        if let target = instruction.relativeTarget {
            form = try Self.branch(instruction, to: target, bytes, layout)
        } else if let operand = instruction.operands.lazy.compactMap(\.memory).first(where: {
            $0.base?.kind == .instructionPointer
        }) {
            form = try Self.displaced(instruction, operand, layout, replaced: replaced)
        } else {
            form = .copied
        }
        // CALL to the next instruction and POP is how 32-bit code learns where it is.
        if instruction.isCall, let target = instruction.relativeTarget,
            target == instruction.nextAddress || replaced.contains(target) && target != replaced.lowerBound
        {
            throw .tellsItsAddress(mnemonic, at: address)
        }
    }

    private static func branch(
        _ instruction: Instruction, to target: UInt64, _ bytes: [UInt8], _ layout: InstructionLayout
    ) throws(PrologueRefusal) -> Form {
        let refusal = PrologueRefusal.unsupportedBranch(instruction.mnemonic, at: instruction.address)
        guard let (offset, count) = layout.distance, offset >= 1, offset + count == bytes.count else { throw refusal }
        let opcode = bytes[offset - 1]
        let isTwoBytes = offset >= 2 && bytes[offset - 2] == 0x0f && opcode & 0xf0 == 0x80 && count == 4
        let prefixes = Array(bytes[..<(offset - (isTwoBytes ? 2 : 1))])
        // With an operand-size prefix the target is cut to 16 bits, or not: it depends on the processor's maker.
        guard !prefixes.contains(0x66) else { throw refusal }
        let form: Form
        switch (opcode, count) {
        case (0x80...0x8f, 4) where isTwoBytes: form = .branch(opcode: prefixes + [0x0f, opcode], target: target)
        case (0x70...0x7f, 1): form = .branch(opcode: prefixes + [0x0f, opcode + 0x10], target: target)
        case (0xe8, 4), (0xe9, 4): form = .branch(opcode: prefixes + [opcode], target: target)
        case (0xeb, 1): form = .branch(opcode: prefixes + [0xe9], target: target)
        case (0xe0...0xe3, 1): form = .shortBranch(opcode: prefixes + [opcode], target: target)
        default: throw refusal
        }
        if case .branch(let opcode, _) = form, opcode.count + 4 > InstructionDecoder.maximumLength { throw refusal }
        return form
    }

    private static func displaced(
        _ instruction: Instruction, _ operand: MemoryOperand, _ layout: InstructionLayout, replaced: Range<UInt64>
    ) throws(PrologueRefusal) -> Form {
        let (mnemonic, address) = (instruction.mnemonic, instruction.address)
        guard operand.base?.bits == 64, let target = operand.absoluteAddress, let offset = layout.displacement,
            offset + 4 <= Int(instruction.length)
        else { throw .truncatedOperand(mnemonic, at: address) }
        // An address taken of the function itself stays the function's; no other byte there keeps its meaning.
        let isFunction = mnemonic == .lea && target == replaced.lowerBound
        let size = max(1, UInt64(operand.bits) / 8)
        let before = replaced.lowerBound &- target
        if !isFunction, replaced.contains(target) || (before < size && before > 0) {
            throw .usesReplacedBytes(mnemonic, at: address, operand: target)
        }
        return .displaced(offset: offset, target: target)
    }

    /// The copy's bytes at `copy`.
    /// - Parameter destination: where to go instead of to an address of the original.
    func encoded(
        at copy: UInt64, mode: DecodingMode, destination: (UInt64) -> UInt64
    ) throws(PrologueRefusal) -> [UInt8] {
        func distance(to target: UInt64, fromEnd end: Int) throws(PrologueRefusal) -> [UInt8] {
            let difference = target &- (copy &+ UInt64(end))
            guard mode == .protected32 || Int32(exactly: Int64(bitPattern: difference)) != nil else {
                throw .outOfReach(instruction.mnemonic, at: instruction.address, target: target, copy: copy)
            }
            return (0..<4).map { UInt8(truncatingIfNeeded: difference >> (8 * $0)) }
        }
        switch form {
        case .copied: return bytes
        case .displaced(let offset, let target):
            var result = bytes
            result.replaceSubrange(offset..<offset + 4, with: try distance(to: target, fromEnd: bytes.count))
            return result
        case .branch(let opcode, let target):
            // A call of the function from its own prologue is a call like any other.
            let goal = instruction.isCall ? target : destination(target)
            return opcode + (try distance(to: goal, fromEnd: length))
        case .shortBranch(let opcode, let target):
            return opcode + [2, 0xeb, 5, 0xe9] + (try distance(to: destination(target), fromEnd: length))
        }
    }
}
