import CZydis

/// Where in an instruction's bytes the parts lie that depend on its address.
struct InstructionLayout {
    /// The displacement's first byte, if there is one.
    var displacement: Int?
    /// The first byte of a branch's relative distance, and the distance's length in bytes.
    var distance: (offset: Int, count: Int)?
    /// A branch to another code segment.
    var isFar: Bool

    /// - Returns: nil where the bytes are no instruction.
    init?(of bytes: [UInt8], mode: DecodingMode) {
        var decoder = ZydisDecoder()
        switch mode {
        case .long64: ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)
        case .protected32: ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32)
        }
        var decoded = ZydisDecodedInstruction()
        let status = bytes.withUnsafeBytes {
            ZydisDecoderDecodeInstruction(&decoder, nil, $0.baseAddress, ZyanUSize($0.count), &decoded)
        }
        // ZYAN_SUCCESS: the top bit of a status is clear.
        guard status & 0x8000_0000 == 0 else { return nil }
        let raw = decoded.raw
        displacement = raw.disp.size > 0 ? Int(raw.disp.offset) : nil
        let immediate = raw.imm.0
        distance =
            immediate.size > 0 && immediate.is_relative != 0
            ? (Int(immediate.offset), Int(immediate.size) / 8) : nil
        isFar = decoded.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR
    }
}
