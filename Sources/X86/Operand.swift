/// What an instruction works on.
public enum Operand: Hashable, Sendable {
    case register(Register)
    case memory(MemoryOperand)
    /// Sign-extended to the width that the instruction works on; relative branch targets are not here but in
    /// `Instruction.relativeTarget`.
    case immediate(UInt64)
    /// A far pointer or something newer than this decoder's users care for.
    case other

    @inlinable public var register: Register? {
        if case .register(let register) = self { register } else { nil }
    }

    @inlinable public var memory: MemoryOperand? {
        if case .memory(let memory) = self { memory } else { nil }
    }

    @inlinable public var immediate: UInt64? {
        if case .immediate(let value) = self { value } else { nil }
    }
}

/// An operand in memory: `segment:[base + index * scale + displacement]`.
public struct MemoryOperand: Hashable, Sendable {
    public var segment: Register?
    public var base: Register?
    public var index: Register?
    /// 1, 2, 4 or 8; meaningless without an index.
    public var scale: UInt8
    public var displacement: Int64
    /// What is read or written, in bits; 0 for an address only (LEA).
    public var bits: UInt16
    /// The address itself where decoding alone gives it: RIP-relative, or neither base nor index.
    /// With an FS or GS segment it is an offset into that segment.
    public var absoluteAddress: UInt64?

    public init(
        segment: Register? = nil, base: Register? = nil, index: Register? = nil, scale: UInt8 = 1,
        displacement: Int64 = 0, bits: UInt16 = 0, absoluteAddress: UInt64? = nil
    ) {
        self.segment = segment
        self.base = base
        self.index = index
        self.scale = scale
        self.displacement = displacement
        self.bits = bits
        self.absoluteAddress = absoluteAddress
    }

    /// `[register + displacement]` and nothing else, in the default segment.
    @inlinable public func isField(of register: Register) -> Bool {
        base == register && index == nil && segment?.isFSOrGS != true
    }
}

extension MemoryOperand {
    /// `[register + displacement]`, where the base is the register or its lower half: RSP and, with 32 bits, ESP.
    @inlinable public func isField(ofWhole register: Register) -> Bool {
        base?.whole == register && index == nil && segment?.isFSOrGS != true
    }
}

extension Register {
    /// FS and GS are the only segments with a base in long mode. Intel SDM volume 1, 3.4.2.1.
    @inlinable public var isFSOrGS: Bool { kind == .segment && (number == 4 || number == 5) }
}

/// The explicit operands of one instruction, kept in line: decoding allocates nothing.
public struct Operands: RandomAccessCollection, Hashable, Sendable {
    /// More than any instruction that Vigil looks into has; further operands are dropped.
    public static let capacity = 4

    @usableFromInline var first = Operand.other, second = Operand.other
    @usableFromInline var third = Operand.other, fourth = Operand.other
    @usableFromInline var stored: UInt8 = 0

    @inlinable init() {}

    @inlinable mutating func append(_ operand: Operand) {
        switch stored {
        case 0: first = operand
        case 1: second = operand
        case 2: third = operand
        case 3: fourth = operand
        default: return
        }
        stored += 1
    }

    @inlinable public var startIndex: Int { 0 }
    @inlinable public var endIndex: Int { Int(stored) }

    /// Positions past the end give `.other`, so that a shape check needs no count check of its own.
    @inlinable public subscript(position: Int) -> Operand {
        guard position >= 0, position < Int(stored) else { return .other }
        return switch position {
        case 0: first
        case 1: second
        case 2: third
        default: fourth
        }
    }
}
