import GuestMemory
import WindowsGuest
import X86

/// A jump over an interrupt handler's first bytes that leads the vector elsewhere: `JMP [RIP]` with the target behind
/// it, which changes no register.
public struct GatePatch: Hashable, Sendable {
    /// FF 25, a displacement of zero, and the target, in bytes.
    public static let length = 14
    /// Kernels lay their vectors' stubs out in slots of this size (NT's `KiIsrThunk` in ones of 8, its exceptions'
    /// handlers at multiples of 64).
    static let slot: UInt64 = 16

    public let handler: GuestVirtualAddress
    public let original: [UInt8]
    public let replacement: [UInt8]
    /// Where instructions of the replaced bytes start, in bytes from the handler's start.
    public let boundaries: [Int]

    /// Whether a processor stands at or in the replaced bytes: then they must not change, not even back. One at the
    /// first has been through the gate for the old handler, or for the new.
    public func isInside(_ rip: UInt64) -> Bool { rip &- handler.rawValue < UInt64(Self.length) }

    /// Reads the handler and works out its replacement.
    ///
    /// The replaced bytes must be the handler's own: instructions that follow one another (of the last one the rest may
    /// stay behind the jump, where nothing leads), or, where it ends before, padding: INT3 or zeroes, and NOPs in the
    /// same slot of 16 bytes.
    public init(
        handler: GuestVirtualAddress, target: GuestVirtualAddress, in memory: KernelMemory
    ) throws(InterruptGateError) {
        let code: [UInt8]
        do throws(MemoryError) {
            code = try memory.hardware.bytes(at: handler, count: UInt64(Self.length + InstructionDecoder.maximumLength))
        } catch {
            throw .unreadable(vector: PageTableWriter.vector, error)
        }
        try self.init(handler: handler, target: target, code: code)
    }

    /// - Parameter code: the handler's bytes, 14 at least and enough for the instruction that the fourteenth is in.
    init(handler: GuestVirtualAddress, target: GuestVirtualAddress, code: [UInt8]) throws(InterruptGateError) {
        func unpatchable(_ why: String) -> InterruptGateError { .unpatchable(handler, why) }
        let decoder = InstructionDecoder(mode: .long64)
        guard code.count >= Self.length else { throw unpatchable("it is too short") }
        var boundaries: [Int] = []
        var offset = 0
        var ended = false
        while offset < Self.length, !ended {
            guard let instruction = decoder.decode(code[offset...], at: handler.rawValue &+ UInt64(offset)) else {
                throw unpatchable("what is at its byte \(offset) is no instruction")
            }
            if offset == 0, Self.isHook(instruction) { throw unpatchable("another jump has been put there") }
            boundaries.append(offset)
            offset += Int(instruction.length)
            ended = !instruction.fallsThrough
        }
        if offset < Self.length {
            let isPadding = code[offset..<Self.length].allSatisfy { [0xcc, 0x90, 0].contains($0) }
            let isOneSlot = handler.rawValue % Self.slot + UInt64(Self.length) <= Self.slot
            // A slot is filled up with a NOP of several bytes, too.
            guard isPadding || (isOneSlot && Self.isFill(code[offset..<Self.length], decoder)) else {
                throw unpatchable("it ends after \(offset) bytes, and what follows may be other code")
            }
        }
        self.handler = handler
        self.boundaries = boundaries
        original = Array(code[..<Self.length])
        replacement =
            [0xff, 0x25, 0, 0, 0, 0] + (0..<8).map { UInt8(truncatingIfNeeded: target.rawValue >> (8 * $0)) }
    }

    private static func isHook(_ instruction: Instruction) -> Bool {
        instruction.isUnconditionalJump && (instruction.length == 5 || instruction.isIndirectBranch)
    }

    /// NOPs alone, of whatever length.
    private static func isFill(_ bytes: ArraySlice<UInt8>, _ decoder: InstructionDecoder) -> Bool {
        var rest = bytes
        while let instruction = decoder.decode(rest, at: 0) {
            guard instruction.mnemonic == .nop else { return false }
            rest = rest.dropFirst(Int(instruction.length))
        }
        return true
    }
}
