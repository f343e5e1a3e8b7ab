import TestSupport

/// Makes the instructions that page-table writers are: Intel SDM volume 2, chapter 2 and MOV, XCHG, CMPXCHG.
struct WriterEncoder {
    enum Operation: CaseIterable {
        case moveRegister, moveImmediate, exchange, compareExchange
    }

    var operation: Operation
    var base: UInt8?
    var index: UInt8?
    /// The scale's logarithm.
    var shift: UInt8 = 0
    var displacement: Int32 = 0
    var source: UInt8 = 0
    var immediate: Int32 = 0

    static func random(_ random: inout SeededGenerator) -> Self {
        // RSP is neither base nor source; as an index it means none.
        let registers = (0..<16 as Range<UInt8>).filter { $0 != 4 }
        var encoder = Self(operation: Operation.allCases.randomElement(using: &random) ?? .exchange)
        let shape = Int.random(in: 0..<4, using: &random)
        if shape != 3 { encoder.base = registers.randomElement(using: &random) }
        if shape >= 2 {
            encoder.index = registers.filter { $0 != encoder.base }.randomElement(using: &random)
            encoder.shift = UInt8.random(in: 0...3, using: &random)
        }
        encoder.displacement =
            [0, Int32.random(in: -16...15, using: &random), Int32.random(in: -0x200_0000...0x1ff_ffff, using: &random)]
            .randomElement(using: &random)! * 8
        encoder.source = registers.randomElement(using: &random)!
        encoder.immediate = Int32.random(in: .min ... .max, using: &random)
        return encoder
    }

    var bytes: [UInt8] {
        let reg = operation == .moveImmediate ? 0 : source
        let rex = 0x48 | (reg >> 3) << 2 | ((index ?? 0) >> 3) << 1 | (base ?? 0) >> 3
        var bytes: [UInt8] = operation == .compareExchange ? [0xf0, rex] : [rex]
        switch operation {
        case .moveRegister: bytes.append(0x89)
        case .moveImmediate: bytes.append(0xc7)
        case .exchange: bytes.append(0x87)
        case .compareExchange: bytes += [0x0f, 0xb1]
        }
        let middle = (reg & 7) << 3
        let wide = (0..<4).map { UInt8(truncatingIfNeeded: displacement >> (8 * $0)) }
        if let base {
            // A base of RBP or R13 has always a displacement.
            let mode: UInt8 =
                displacement == 0 && base & 7 != 5 ? 0 : (Int8(exactly: displacement) != nil ? 1 : 2)
            if index != nil || base & 7 == 4 {
                bytes += [mode << 6 | middle | 4, shift << 6 | ((index ?? 4) & 7) << 3 | base & 7]
            } else {
                bytes.append(mode << 6 | middle | base & 7)
            }
            bytes += mode == 0 ? [] : mode == 1 ? [UInt8(truncatingIfNeeded: displacement)] : wide
        } else {
            bytes += [middle | 4, shift << 6 | ((index ?? 4) & 7) << 3 | 5] + wide
        }
        if operation == .moveImmediate { bytes += (0..<4).map { UInt8(truncatingIfNeeded: immediate >> (8 * $0)) } }
        return bytes
    }
}
