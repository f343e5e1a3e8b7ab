/// One decoded instruction.
public struct Instruction: Hashable, Sendable {
    /// How control leaves the instruction.
    public enum Flow: UInt8, Hashable, Sendable {
        /// On to the next instruction.
        case sequential
        case call
        case conditionalJump
        case unconditionalJump
        /// RET, IRET, SYSRET, SYSEXIT.
        case `return`
        /// INT3, INT n, UD2: whether control comes back depends on the handler.
        case interrupt
        /// HLT and the like.
        case halt
    }

    /// The linear address it was decoded at.
    public var address: UInt64
    /// In bytes, 1 to 15.
    public var length: UInt8
    public var mnemonic: Mnemonic
    public var operands: Operands
    public var flow: Flow
    /// The target of a relative CALL, JMP or Jcc.
    public var relativeTarget: UInt64?

    /// The address just behind the instruction.
    @inlinable public var nextAddress: UInt64 { address &+ UInt64(length) }

    @inlinable public var isCall: Bool { flow == .call }
    @inlinable public var isReturn: Bool { flow == .return }
    @inlinable public var isUnconditionalJump: Bool { flow == .unconditionalJump }
    @inlinable public var isConditionalJump: Bool { flow == .conditionalJump }

    /// Control may reach the next instruction. INT3 and UD2 count as ends: kernels use them as such.
    @inlinable public var fallsThrough: Bool {
        switch flow {
        case .sequential, .call, .conditionalJump, .halt: true
        case .interrupt: mnemonic == .int
        case .unconditionalJump, .return: false
        }
    }

    /// CALL or JMP through a register or memory: decoding alone does not say where to.
    @inlinable public var isIndirectBranch: Bool {
        (flow == .call || flow == .unconditionalJump) && relativeTarget == nil
    }

    /// The 64-bit register that the first operand wholly or partly writes in a MOV-like instruction.
    @inlinable public var destination: Register? { operands[0].register }
}
