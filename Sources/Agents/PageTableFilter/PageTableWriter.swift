import GuestMemory
import X86

/// An instruction that writes 8 bytes of memory as code that changes page tables does.
///
/// The three forms are those of NT's own writers: `MOV [m], r/imm`, `XCHG [m], r` and `CMPXCHG [m], r`, with the
/// operand at `base + index * scale + displacement`. What the filter could not perform from an interrupt's frame is
/// left out: operands relative to RSP or RIP, with an address alone, in FS or GS, of another size than 8 bytes, and
/// addresses of 32 bits.
public struct PageTableWriter: Hashable, Sendable {
    /// The raw value is the guest-side filter's (`Guest/agents/ptfilter/filter.h`).
    public enum Kind: UInt8, Hashable, Sendable, CaseIterable {
        case move = 0
        case exchange = 1
        case compareExchange = 2
    }

    /// What is written.
    public enum Source: Hashable, Sendable {
        /// A general register by its hardware number, never RSP.
        case register(UInt8)
        /// Sign-extended to 64 bits by the instruction. Only a MOV has one.
        case immediate(Int32)
    }

    public let address: GuestVirtualAddress
    /// In bytes, 3 to 15: an 8-byte operand needs a REX prefix.
    public let length: UInt8
    public let kind: Kind
    /// General registers by their hardware numbers; one of the two is there.
    public let base: UInt8?
    public let index: UInt8?
    /// 1, 2, 4 or 8; 1 without an index.
    public let scale: UInt8
    public let displacement: Int32
    public let source: Source

    /// The instruction behind it, at which an interrupt in its place returns, and which is next when a debug
    /// register has noticed its access.
    public var end: GuestVirtualAddress { address + UInt64(length) }

    /// - Returns: nil where the instruction is none of the forms.
    public init?(_ instruction: Instruction) {
        guard let memory = instruction.operands[0].memory, memory.bits == 64, memory.segment?.isFSOrGS != true,
            memory.absoluteAddress == nil, instruction.operands.count == 2,
            let displacement = Int32(exactly: memory.displacement),
            (3...15).contains(instruction.length)
        else { return nil }
        switch instruction.mnemonic {
        case .mov: kind = .move
        case .xchg: kind = .exchange
        case .cmpxchg: kind = .compareExchange
        default: return nil
        }
        if let register = instruction.operands[1].register {
            guard let number = Self.number(register) else { return nil }
            source = .register(number)
        } else if kind == .move, let immediate = instruction.operands[1].immediate,
            let value = Int32(exactly: Int64(bitPattern: immediate))
        {
            source = .immediate(value)
        } else {
            return nil
        }
        if let register = memory.base {
            guard let number = Self.number(register) else { return nil }
            base = number
        } else {
            base = nil
        }
        if let register = memory.index {
            guard let number = Self.number(register), [1, 2, 4, 8].contains(memory.scale) else { return nil }
            index = number
        } else {
            index = nil
        }
        guard base != nil || index != nil else { return nil }
        scale = index == nil ? 1 : memory.scale
        self.displacement = displacement
        address = GuestVirtualAddress(instruction.address)
        length = instruction.length
    }

    /// A 64-bit general register's number; RSP is refused: an interrupt pushes its frame there.
    private static func number(_ register: Register) -> UInt8? {
        guard register.kind == .general, register.bits == 64, register != .rsp else { return nil }
        return register.number
    }

    /// Where it writes with these registers before it.
    public func effectiveAddress(_ registers: Registers) -> GuestVirtualAddress {
        let start = base.map { registers.general($0) } ?? 0
        let scaled = index.map { registers.general($0) &* UInt64(scale) } ?? 0
        return GuestVirtualAddress(start &+ scaled &+ UInt64(bitPattern: Int64(displacement)))
    }

    /// It may overwrite a register that its own address was made of: where it wrote cannot be told afterwards.
    public var changesItsAddress: Bool {
        let changed: UInt8
        switch (kind, source) {
        case (.exchange, .register(let number)): changed = number
        case (.compareExchange, _): changed = 0
        default: return false
        }
        return base == changed || index == changed
    }

    /// The vector whose interrupt takes its place: #VE, which a guest on a hypervisor without it never has. Intel SDM
    /// volume 3, 6.15.
    public static let vector: UInt8 = 20

    /// What is written over it: `INT 20` with as many operand-size prefixes, which INT ignores, as make it one
    /// instruction of the same length. A processor stands before it or behind it, never inside.
    public var patch: [UInt8] { [UInt8](repeating: 0x66, count: Int(length) - 2) + [0xcd, Self.vector] }
}

extension Registers {
    /// A general register by its hardware number (Intel SDM volume 2, table 2-2 and REX).
    func general(_ number: UInt8) -> UInt64 {
        switch number {
        case 0: rax
        case 1: rcx
        case 2: rdx
        case 3: rbx
        case 4: rsp
        case 5: rbp
        case 6: rsi
        case 7: rdi
        case 8: r8
        case 9: r9
        case 10: r10
        case 11: r11
        case 12: r12
        case 13: r13
        case 14: r14
        default: r15
        }
    }
}
