/// Why a function's first instructions are not moved elsewhere. Each description is a sentence for the user.
public enum PrologueRefusal: Error, Hashable, Sendable {
    /// The function starts with somebody's jump.
    case alreadyHooked(at: UInt64)
    /// Control leaves the function for good before enough bytes: RET, or a jump.
    case endsEarly(Mnemonic, at: UInt64, needed: Int)
    /// INT3: somebody's breakpoint, or no function.
    case breakpoint(at: UInt64)
    /// The bytes are no instruction.
    case undecodable(at: UInt64)
    /// The bytes that were given end before enough whole instructions do.
    case truncated(at: UInt64)
    /// The instruction gives its own address away, which the copy's is not.
    case tellsItsAddress(Mnemonic, at: UInt64)
    /// A branch of a form that is not moved: far, XBEGIN, with an operand-size prefix, too long.
    case unsupportedBranch(Mnemonic, at: UInt64)
    /// An operand relative to EIP (address-size prefix).
    case truncatedOperand(Mnemonic, at: UInt64)
    /// An operand that lies in the bytes to be replaced: it would be other bytes then.
    case usesReplacedBytes(Mnemonic, at: UInt64, operand: UInt64)
    /// A branch of the function to an address inside the bytes to be replaced.
    case branchIntoReplacedBytes(from: UInt64, to: UInt64)
    /// From where the copy is to lie, 32 bits do not reach what the instruction refers to.
    case outOfReach(Mnemonic, at: UInt64, target: UInt64, copy: UInt64)
}

extension PrologueRefusal: CustomStringConvertible {
    public var description: String {
        func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
        return switch self {
        case .alreadyHooked(let address):
            "the function at \(hex(address)) starts with a jump already: another hook stands there"
        case .endsEarly(let mnemonic, let address, let needed):
            "\(mnemonic) at \(hex(address)) leaves the function before \(needed) bytes that a jump could replace"
        case .breakpoint(let address):
            "an int3 stands at \(hex(address)): a debugger's breakpoint, or no function"
        case .undecodable(let address): "the bytes at \(hex(address)) are no instruction"
        case .truncated(let address): "the code that can be read ends in the prologue, at \(hex(address))"
        case .tellsItsAddress(let mnemonic, let address):
            "\(mnemonic) at \(hex(address)) makes its own address visible, so it cannot be moved"
        case .unsupportedBranch(let mnemonic, let address):
            "\(mnemonic) at \(hex(address)) is a branch in a form that is not moved"
        case .truncatedOperand(let mnemonic, let address):
            "\(mnemonic) at \(hex(address)) refers to memory relative to EIP, which is not moved"
        case .usesReplacedBytes(let mnemonic, let address, let operand):
            "\(mnemonic) at \(hex(address)) refers to \(hex(operand)), which is among the bytes to be replaced"
        case .branchIntoReplacedBytes(let from, let to):
            "the branch at \(hex(from)) leads to \(hex(to)), inside the bytes to be replaced"
        case .outOfReach(let mnemonic, let address, let target, let copy):
            "\(mnemonic) at \(hex(address)) refers to \(hex(target)), which is more than 2 GiB from its copy at "
                + hex(copy)
        }
    }
}
