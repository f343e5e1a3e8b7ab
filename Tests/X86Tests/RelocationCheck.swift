import X86

/// Holds a relocated prologue against the original, by decoding both: a second way to the same answer.
enum RelocationCheck {
    /// What differs in meaning; empty where nothing does.
    static func differences(_ relocation: PrologueRelocation, at copy: UInt64) throws -> [String] {
        let mode = relocation.mode
        let decoder = InstructionDecoder(mode: mode)
        let bytes = try relocation.bytes(at: copy)
        var problems: [String] = []
        func check(_ condition: Bool, _ text: @autoclosure () -> String) { if !condition { problems.append(text()) } }
        func decoded(_ offset: Int) -> Instruction? {
            offset < bytes.count ? decoder.decode(bytes[offset...], at: copy &+ UInt64(offset)) : nil
        }
        check(bytes.count == relocation.copyLength, "the copy has another length than it was said to have")

        var offset = 0
        for piece in relocation.pieces {
            let original = piece.original
            let name = "\(original.mnemonic) at 0x\(String(original.address, radix: 16))"
            check(piece.copyOffset == offset, "\(name): its copy is not where it was said to be")
            guard let moved = decoded(offset) else {
                problems.append("\(name): its copy is no instruction")
                return problems
            }
            check(moved.mnemonic == original.mnemonic, "\(name) has become \(moved.mnemonic)")
            check(moved.flow == original.flow, "\(name): another flow")
            check(moved.operands.map(meaning) == original.operands.map(meaning), "\(name): other operands")
            var end = Int(moved.length)
            if let target = original.relativeTarget {
                let isLocal = original.isCall ? nil : relocation.copyOffset(of: target)
                let goal = isLocal.map { copy &+ UInt64($0) } ?? target
                if piece.copyLength > end {
                    // The branch leads over a jump that leads over a jump to the target.
                    let over = decoded(offset + end)
                    let jump = decoded(offset + end + Int(over?.length ?? 0))
                    check(over?.mnemonic == .jmp && over?.relativeTarget == jump?.nextAddress, "\(name): no way on")
                    check(moved.relativeTarget == jump?.address, "\(name): does not lead to its jump")
                    check(jump?.mnemonic == .jmp && jump?.relativeTarget == goal, "\(name): leads elsewhere")
                    end += Int(over?.length ?? 0) + Int(jump?.length ?? 0)
                } else {
                    check(moved.relativeTarget == goal, "\(name): leads elsewhere")
                }
            }
            check(end == piece.copyLength, "\(name): its copy has another length")
            offset += piece.copyLength
        }
        if relocation.jumpsBack {
            let jump = decoded(offset)
            check(jump?.mnemonic == .jmp && jump?.relativeTarget == relocation.continuation, "no jump back")
            offset += Int(jump?.length ?? 0)
        }
        check(offset == bytes.count, "there is more than the copies")
        return problems
    }

    /// An operand without what is allowed to differ: a displacement from RIP.
    private static func meaning(_ operand: Operand) -> Operand {
        guard var memory = operand.memory, memory.base?.kind == .instructionPointer else { return operand }
        memory.displacement = 0
        return .memory(memory)
    }
}
