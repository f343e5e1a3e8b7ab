/// One register as an instruction's operand names it.
///
/// `number` is the hardware's number (Intel SDM volume 2, table 2-2 and REX): 0 is RAX, 1 RCX, 2 RDX, 3 RBX,
/// 4 RSP, 5 RBP, 6 RSI, 7 RDI, 8 to 15 R8 to R15; for segments 0 ES, 1 CS, 2 SS, 3 DS, 4 FS, 5 GS.
public struct Register: Hashable, Sendable {
    public enum Kind: UInt8, Hashable, Sendable {
        case general
        /// AH, CH, DH, BH: `number` is that of the register they are the second byte of.
        case highByte
        case segment
        case instructionPointer
        case control
        case debug
        case vector
        case other
    }

    public var kind: Kind
    public var number: UInt8
    /// Width in bits; 0 where the register file has none of interest.
    public var bits: UInt16

    @inlinable public init(kind: Kind, number: UInt8, bits: UInt16) {
        self.kind = kind
        self.number = number
        self.bits = bits
    }

    /// A general register of `bits` bits by its hardware number.
    @inlinable public static func general(_ number: UInt8, bits: UInt16 = 64) -> Self {
        Self(kind: .general, number: number, bits: bits)
    }

    public static let rax = general(0), rcx = general(1), rdx = general(2), rbx = general(3)
    public static let rsp = general(4), rbp = general(5), rsi = general(6), rdi = general(7)
    public static let r8 = general(8), r9 = general(9), r10 = general(10), r11 = general(11)
    public static let r12 = general(12), r13 = general(13), r14 = general(14), r15 = general(15)
    public static let eax = general(0, bits: 32), al = general(0, bits: 8)
    public static let fs = Self(kind: .segment, number: 4, bits: 16)
    public static let gs = Self(kind: .segment, number: 5, bits: 16)

    /// The register whose value this is a part of: RAX for EAX, AX, AL and AH.
    @inlinable public var whole: Self {
        kind == .general || kind == .highByte ? .general(number) : self
    }
}
