/// Assembles machine code from bytes, with references to symbols that are resolved at the end.
///
/// Addresses are offsets into an image; a reference is the usual 32-bit distance from its own end.
public struct CodeBuilder {
    public private(set) var bytes: [UInt8] = []
    /// Where the code will lie in its image.
    public let origin: UInt32
    public private(set) var symbols: [String: UInt32] = [:]
    private var references: [(offset: Int, symbol: String)] = []
    private var pointers: [(offset: Int, symbol: String, width: Int)] = []

    public init(origin: UInt32) { self.origin = origin }

    public var position: UInt32 { origin + UInt32(bytes.count) }

    public mutating func emit(_ code: UInt8...) { bytes += code }
    public mutating func emit(_ code: [UInt8]) { bytes += code }

    public mutating func emit32(_ value: UInt32) {
        bytes += (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }

    /// Pads with INT3, as compilers do between functions, and gives the place a name.
    public mutating func function(_ name: String, alignment: Int = 16) {
        while bytes.count % alignment != 0 { bytes.append(0xcc) }
        symbols[name] = position
    }

    public mutating func align(_ alignment: Int) {
        while bytes.count % alignment != 0 { bytes.append(0) }
    }

    public mutating func label(_ name: String) { symbols[name] = position }

    /// Opcode bytes followed by the distance to a symbol.
    public mutating func refer(_ opcode: [UInt8], to symbol: String) {
        bytes += opcode
        references.append((bytes.count, symbol))
        bytes += [0, 0, 0, 0]
    }

    public mutating func call(_ symbol: String) { refer([0xe8], to: symbol) }
    public mutating func jump(_ symbol: String) { refer([0xe9], to: symbol) }

    /// Opcode bytes followed by a symbol's address, of `width` bytes.
    public mutating func point(_ opcode: [UInt8] = [], to symbol: String, width: Int = 4) {
        bytes += opcode
        pointers.append((bytes.count, symbol, width))
        bytes += [UInt8](repeating: 0, count: width)
    }

    /// - Parameters:
    ///   - all: the image's symbols, as offsets into it.
    ///   - base: where the image is loaded.
    public mutating func resolve(_ all: [String: UInt32], base: UInt64 = 0) {
        for (offset, symbol, width) in pointers {
            guard let target = all[symbol] else { preconditionFailure("no symbol \(symbol)") }
            let address = base &+ UInt64(target)
            for index in 0..<width { bytes[offset + index] = UInt8(truncatingIfNeeded: address >> (8 * UInt64(index))) }
        }
        for (offset, symbol) in references {
            guard let target = all[symbol] else { preconditionFailure("no symbol \(symbol)") }
            let distance = target &- (origin + UInt32(offset) + 4)
            for index in 0..<4 { bytes[offset + index] = UInt8(truncatingIfNeeded: distance >> (8 * UInt32(index))) }
        }
    }
}
