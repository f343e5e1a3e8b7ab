import CZydis

/// What an instruction does, by name; `rawValue` is the decoder library's number, so equality covers them all.
public struct Mnemonic: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    init(_ mnemonic: ZydisMnemonic) { rawValue = UInt32(mnemonic.rawValue) }

    public static let mov = Self(ZYDIS_MNEMONIC_MOV)
    public static let movzx = Self(ZYDIS_MNEMONIC_MOVZX)
    public static let movsx = Self(ZYDIS_MNEMONIC_MOVSX)
    public static let movsxd = Self(ZYDIS_MNEMONIC_MOVSXD)
    public static let lea = Self(ZYDIS_MNEMONIC_LEA)
    public static let xchg = Self(ZYDIS_MNEMONIC_XCHG)
    public static let cmpxchg = Self(ZYDIS_MNEMONIC_CMPXCHG)
    public static let push = Self(ZYDIS_MNEMONIC_PUSH)
    public static let pop = Self(ZYDIS_MNEMONIC_POP)
    public static let pushfd = Self(ZYDIS_MNEMONIC_PUSHFD)
    public static let pushfq = Self(ZYDIS_MNEMONIC_PUSHFQ)
    public static let leave = Self(ZYDIS_MNEMONIC_LEAVE)
    public static let add = Self(ZYDIS_MNEMONIC_ADD)
    public static let sub = Self(ZYDIS_MNEMONIC_SUB)
    public static let and = Self(ZYDIS_MNEMONIC_AND)
    public static let or = Self(ZYDIS_MNEMONIC_OR)
    public static let xor = Self(ZYDIS_MNEMONIC_XOR)
    public static let shr = Self(ZYDIS_MNEMONIC_SHR)
    public static let test = Self(ZYDIS_MNEMONIC_TEST)
    public static let cmp = Self(ZYDIS_MNEMONIC_CMP)
    public static let cli = Self(ZYDIS_MNEMONIC_CLI)
    public static let sti = Self(ZYDIS_MNEMONIC_STI)
    public static let nop = Self(ZYDIS_MNEMONIC_NOP)
    public static let endbr32 = Self(ZYDIS_MNEMONIC_ENDBR32)
    public static let endbr64 = Self(ZYDIS_MNEMONIC_ENDBR64)
    public static let call = Self(ZYDIS_MNEMONIC_CALL)
    public static let jmp = Self(ZYDIS_MNEMONIC_JMP)
    public static let ret = Self(ZYDIS_MNEMONIC_RET)
    public static let int = Self(ZYDIS_MNEMONIC_INT)
    public static let int3 = Self(ZYDIS_MNEMONIC_INT3)
    public static let ud2 = Self(ZYDIS_MNEMONIC_UD2)
    public static let hlt = Self(ZYDIS_MNEMONIC_HLT)
    public static let syscall = Self(ZYDIS_MNEMONIC_SYSCALL)
    public static let sysenter = Self(ZYDIS_MNEMONIC_SYSENTER)
    public static let swapgs = Self(ZYDIS_MNEMONIC_SWAPGS)

    /// As Intel's manual spells it, in lower case.
    public var description: String {
        ZydisMnemonicGetString(ZydisMnemonic(rawValue: rawValue)).map { String(cString: $0) } ?? "?"
    }
}
