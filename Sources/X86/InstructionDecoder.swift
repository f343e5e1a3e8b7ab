import CZydis

/// How a processor reads instruction bytes.
public enum DecodingMode: Hashable, Sendable {
    /// 64-bit mode.
    case long64
    /// 32-bit protected mode.
    case protected32
}

/// Decodes machine code, bounded by the bytes given. Zydis 4 does the work; nothing is allocated.
public struct InstructionDecoder: Sendable {
    /// No x86 instruction is longer, in bytes. Intel SDM volume 2, 2.3.11.
    public static let maximumLength = 15

    public let mode: DecodingMode
    private let decoder: ZydisDecoder

    public init(mode: DecodingMode) {
        self.mode = mode
        var decoder = ZydisDecoder()
        switch mode {
        case .long64:
            ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)
        case .protected32:
            ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32)
        }
        self.decoder = decoder
    }

    /// Decodes the instruction that `bytes` start with, as it would run at `address`.
    /// - Returns: nil where the bytes are no instruction, or end before it does.
    public func decode(_ bytes: UnsafeRawBufferPointer, at address: UInt64) -> Instruction? {
        guard let start = bytes.baseAddress, bytes.count > 0 else { return nil }
        var context = ZydisDecoderContext()
        var decoded = ZydisDecodedInstruction()
        let length = ZyanUSize(min(bytes.count, Self.maximumLength))
        var instruction = Instruction(
            address: address, length: 0, mnemonic: Mnemonic(rawValue: 0), operands: Operands(), flow: .sequential)
        let complete = withUnsafePointer(to: decoder) { decoder in
            guard Self.succeeded(ZydisDecoderDecodeInstruction(decoder, &context, start, length, &decoded)) else {
                return false
            }
            let count = Int(decoded.operand_count_visible)
            return withUnsafeTemporaryAllocation(of: ZydisDecodedOperand.self, capacity: max(count, 1)) { operands in
                guard
                    Self.succeeded(
                        ZydisDecoderDecodeOperands(
                            decoder, &context, &decoded, operands.baseAddress, ZyanU8(truncatingIfNeeded: count)))
                else { return false }
                for index in 0..<count {
                    append(operands[index], of: decoded, to: &instruction)
                }
                return true
            }
        }
        guard complete else { return nil }
        instruction.length = decoded.length
        instruction.mnemonic = Mnemonic(decoded.mnemonic)
        instruction.flow = Self.flow(of: decoded)
        if let target = instruction.relativeTarget {
            let absolute = target &+ instruction.nextAddress
            instruction.relativeTarget = mode == .long64 ? absolute : absolute & 0xffff_ffff
        }
        return instruction
    }

    /// Decodes the instruction at the start of `bytes`, an array's slice.
    public func decode(_ bytes: ArraySlice<UInt8>, at address: UInt64) -> Instruction? {
        bytes.withUnsafeBytes { decode($0, at: address) }
    }

    /// Decodes the instruction at the start of `bytes`.
    public func decode(_ bytes: [UInt8], at address: UInt64) -> Instruction? {
        bytes.withUnsafeBytes { decode($0, at: address) }
    }

    /// ZYAN_SUCCESS: the top bit of a status is clear.
    private static func succeeded(_ status: ZyanStatus) -> Bool { status & 0x8000_0000 == 0 }

    /// Adds one operand; a relative one becomes the distance in `relativeTarget`, completed by the caller.
    private func append(
        _ operand: ZydisDecodedOperand, of decoded: ZydisDecodedInstruction, to instruction: inout Instruction
    ) {
        switch operand.type {
        case ZYDIS_OPERAND_TYPE_REGISTER:
            instruction.operands.append(Register(operand.reg.value).map { .register($0) } ?? .other)
        case ZYDIS_OPERAND_TYPE_MEMORY:
            instruction.operands.append(.memory(memory(operand, of: decoded, at: instruction.address)))
        case ZYDIS_OPERAND_TYPE_IMMEDIATE:
            if operand.imm.is_relative != 0 {
                instruction.relativeTarget = operand.imm.value.u
            } else {
                // The library extends to 64 bits; the instruction only to the width that it works on.
                let unused = UInt64(64 &- min(64, max(8, UInt64(decoded.operand_width))))
                instruction.operands.append(.immediate((operand.imm.value.u << unused) >> unused))
            }
        default:
            instruction.operands.append(.other)
        }
    }

    private func memory(
        _ operand: ZydisDecodedOperand, of decoded: ZydisDecodedInstruction, at address: UInt64
    ) -> MemoryOperand {
        let source = operand.mem
        let base = Register(source.base)
        var result = MemoryOperand(
            segment: Register(source.segment), base: base, index: Register(source.index), scale: source.scale,
            displacement: source.disp.value, bits: operand.size)
        let displacement = UInt64(bitPattern: source.disp.value)
        if base?.kind == .instructionPointer {
            result.absoluteAddress = address &+ UInt64(decoded.length) &+ displacement
        } else if result.base == nil, result.index == nil {
            result.absoluteAddress = mode == .long64 ? displacement : displacement & 0xffff_ffff
        }
        return result
    }

    private static func flow(of decoded: ZydisDecodedInstruction) -> Instruction.Flow {
        switch decoded.meta.category {
        case ZYDIS_CATEGORY_CALL: .call
        case ZYDIS_CATEGORY_COND_BR: .conditionalJump
        case ZYDIS_CATEGORY_UNCOND_BR: .unconditionalJump
        case ZYDIS_CATEGORY_RET, ZYDIS_CATEGORY_SYSRET: .return
        case ZYDIS_CATEGORY_INTERRUPT: .interrupt
        default:
            switch decoded.mnemonic {
            case ZYDIS_MNEMONIC_UD2, ZYDIS_MNEMONIC_UD0, ZYDIS_MNEMONIC_UD1: .interrupt
            case ZYDIS_MNEMONIC_HLT: .halt
            default: .sequential
            }
        }
    }
}

extension Register {
    /// The decoder's register in our terms; nil for "none".
    init?(_ register: ZydisRegister) {
        guard register != ZYDIS_REGISTER_NONE else { return nil }
        let bits = UInt16(ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, register))
        let number = UInt8(truncatingIfNeeded: max(0, Int(ZydisRegisterGetId(register))))
        switch ZydisRegisterGetClass(register) {
        case ZYDIS_REGCLASS_GPR8:
            // The library numbers AL, CL, DL, BL, AH, CH, DH, BH, SPL, BPL, SIL, DIL, R8B and on in one row.
            let row = UInt8(truncatingIfNeeded: register.rawValue &- ZYDIS_REGISTER_AL.rawValue)
            if row < 4 {
                self.init(kind: .general, number: row, bits: 8)
            } else {
                self.init(kind: row < 8 ? .highByte : .general, number: row - 4, bits: 8)
            }
        case ZYDIS_REGCLASS_GPR16, ZYDIS_REGCLASS_GPR32, ZYDIS_REGCLASS_GPR64:
            self.init(kind: .general, number: number, bits: bits)
        case ZYDIS_REGCLASS_SEGMENT:
            self.init(kind: .segment, number: number, bits: 16)
        case ZYDIS_REGCLASS_IP:
            self.init(kind: .instructionPointer, number: 0, bits: bits)
        case ZYDIS_REGCLASS_CONTROL:
            self.init(kind: .control, number: number, bits: bits)
        case ZYDIS_REGCLASS_DEBUG:
            self.init(kind: .debug, number: number, bits: bits)
        case ZYDIS_REGCLASS_MMX, ZYDIS_REGCLASS_XMM, ZYDIS_REGCLASS_YMM, ZYDIS_REGCLASS_ZMM:
            self.init(kind: .vector, number: number, bits: bits)
        default:
            self.init(kind: .other, number: number, bits: bits)
        }
    }
}
