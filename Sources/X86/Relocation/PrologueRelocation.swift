/// The first instructions of a function, as they can be executed at another address.
///
/// For a detour: its jump replaces `replacedLength` bytes of the function, and the copy does what they did and
/// goes on behind them. Whatever cannot be moved with certainty is refused with a sentence. What is moved:
/// instructions that do not depend on their address, as they are; operands relative to RIP, with another
/// displacement; relative branches, in their 32-bit forms (`LOOP` and `JRCXZ`, which have none, by way of a jump);
/// branches among the moved instructions lead to the copies.
public struct PrologueRelocation: Sendable {
    /// E9 and a distance of 32 bits, in bytes.
    public static let jumpLength = 5

    /// Where an instruction was, and where its copy is.
    public struct Piece: Hashable, Sendable {
        public var original: Instruction
        /// In bytes from the copy's start.
        public var copyOffset: Int
        public var copyLength: Int
    }

    /// The first replaced byte.
    public let address: UInt64
    public let mode: DecodingMode
    /// How many bytes of the function may be replaced: whole instructions.
    public let replacedLength: Int
    /// The copy's length with its jump back, in bytes. It is the same wherever the copy lies.
    public let copyLength: Int
    /// The moved instructions, in order.
    public let pieces: [Piece]
    /// The copy ends in a jump to the instruction behind the replaced ones; otherwise control leaves it before.
    public let jumpsBack: Bool
    /// The copy holds a CALL: as long as what it calls has not returned, the copy's address lies on a stack.
    public let calls: Bool

    private let instructions: [RelocatedInstruction]

    /// The address behind the replaced bytes.
    public var continuation: UInt64 { Self.wrapped(address &+ UInt64(replacedLength), mode) }

    /// Analyses the function at `address`.
    /// - Parameters:
    ///   - code: the function's bytes, as many of them as are to be searched for branches into the replaced ones.
    ///   - address: where they lie; the addresses of `code` must not wrap around the address space.
    ///   - minimum: how many bytes must be replaced at least.
    public init(
        of code: [UInt8], at address: UInt64, mode: DecodingMode, covering minimum: Int = jumpLength
    ) throws(PrologueRefusal) {
        let prologue = try Self.prologue(of: code, at: address, mode: mode, covering: max(1, minimum))
        let length = prologue.reduce(0) { $0 + Int($1.length) }
        let (end, overflows) = address.addingReportingOverflow(UInt64(code.count))
        guard !overflows, mode == .long64 || end <= 1 << 32 else { throw .truncated(at: address) }
        let replaced = address..<address + UInt64(length)

        var instructions: [RelocatedInstruction] = []
        var pieces: [Piece] = []
        var offset = 0
        for instruction in prologue {
            let start = Int(instruction.address - address)
            let bytes = Array(code[start..<start + Int(instruction.length)])
            let moved = try RelocatedInstruction(instruction, bytes: bytes, mode: mode, replaced: replaced)
            instructions.append(moved)
            pieces.append(Piece(original: instruction, copyOffset: offset, copyLength: moved.length))
            offset += moved.length
        }
        let boundaries = Set(prologue.map(\.address))
        for instruction in prologue {
            guard let target = instruction.relativeTarget, replaced.contains(target), !boundaries.contains(target)
            else { continue }
            throw .branchIntoReplacedBytes(from: instruction.address, to: target)
        }
        let inside = address + 1..<max(replaced.upperBound, address + 1)
        if let branch = InwardBranches(in: code, at: address, mode: mode).first(into: inside, passingOver: replaced) {
            throw .branchIntoReplacedBytes(from: branch.from, to: branch.to)
        }

        self.address = address
        self.mode = mode
        self.instructions = instructions
        self.pieces = pieces
        replacedLength = length
        jumpsBack = prologue.last?.fallsThrough ?? true
        copyLength = offset + (jumpsBack ? Self.jumpLength : 0)
        calls = prologue.contains { $0.isCall }
    }

    /// Decodes whole instructions until they are long enough.
    private static func prologue(
        of code: [UInt8], at address: UInt64, mode: DecodingMode, covering minimum: Int
    ) throws(PrologueRefusal) -> [Instruction] {
        let decoder = InstructionDecoder(mode: mode)
        var prologue: [Instruction] = []
        var offset = 0
        while offset < minimum {
            let here = address &+ UInt64(offset)
            guard let instruction = decoder.decode(code.dropFirst(offset), at: here) else {
                // The longest instruction would have fitted: it is none.
                throw code.count - offset >= InstructionDecoder.maximumLength
                    ? .undecodable(at: here) : .truncated(at: here)
            }
            if instruction.mnemonic == .int3 { throw .breakpoint(at: here) }
            if prologue.allSatisfy({ $0.mnemonic == .endbr64 }), isHook(instruction, mode) {
                throw .alreadyHooked(at: address)
            }
            prologue.append(instruction)
            offset += Int(instruction.length)
            if !instruction.fallsThrough, instruction.flow != .interrupt, offset < minimum {
                throw .endsEarly(instruction.mnemonic, at: here, needed: minimum)
            }
        }
        return prologue
    }

    /// The jumps that hooks are made of: E9, FF 25, and the short one to the bytes before the function that
    /// functions made for patching (MSVC /hotpatch, /functionpadmin) have there.
    private static func isHook(_ instruction: Instruction, _ mode: DecodingMode) -> Bool {
        guard instruction.isUnconditionalJump else { return false }
        if let target = instruction.relativeTarget {
            return instruction.length >= 5 || instruction.address &- target <= 16
        }
        // A far jump's operand is wider or narrower than an address.
        guard let pointer = instruction.operands[0].memory, pointer.absoluteAddress != nil else { return false }
        return pointer.bits == (mode == .long64 ? 64 : 32)
    }

    private static func wrapped(_ address: UInt64, _ mode: DecodingMode) -> UInt64 {
        mode == .long64 ? address : address & 0xffff_ffff
    }

    // MARK: The copy

    /// The copy's bytes, to be written to `copy`, with the jump back.
    /// - Throws: `outOfReach` where something that an instruction refers to is too far from there.
    public func bytes(at copy: UInt64) throws(PrologueRefusal) -> [UInt8] {
        var result: [UInt8] = []
        for instruction in instructions {
            let here = copy &+ UInt64(result.count)
            result += try instruction.encoded(at: here, mode: mode) { target in
                copyOffset(of: target).map { copy &+ UInt64($0) } ?? target
            }
        }
        if jumpsBack {
            let here = copy &+ UInt64(result.count)
            guard let jump = Self.jump(from: here, to: continuation, mode: mode) else {
                throw .outOfReach(.jmp, at: continuation, target: continuation, copy: here)
            }
            result += jump
        }
        return result
    }

    /// The offset in the copy of the instruction that was at `original`; nil where none of the moved ones starts.
    public func copyOffset(of original: UInt64) -> Int? {
        pieces.first { $0.original.address == original }?.copyOffset
    }

    /// Where a processor that is about to execute the copy at an offset would stand in the original; nil where no
    /// instruction of the copy starts.
    public func original(ofCopyOffset offset: Int) -> UInt64? {
        for (piece, instruction) in zip(pieces, instructions) {
            if let found = instruction.originals.first(where: { piece.copyOffset + $0.offset == offset }) {
                return found.address
            }
        }
        return jumpsBack && offset == copyLength - Self.jumpLength ? continuation : nil
    }

    /// JMP with a distance of 32 bits, as it stands at `source`; nil where that does not reach.
    public static func jump(from source: UInt64, to target: UInt64, mode: DecodingMode) -> [UInt8]? {
        let distance = target &- (source &+ UInt64(jumpLength))
        guard mode == .protected32 || Int32(exactly: Int64(bitPattern: distance)) != nil else { return nil }
        return [0xe9] + (0..<4).map { UInt8(truncatingIfNeeded: distance >> (8 * $0)) }
    }
}
