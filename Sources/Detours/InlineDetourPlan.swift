import GuestMemory
import HypervisorInterface
import X86

/// The bytes of an inline detour: what is to lie where. Making a plan changes nothing.
///
/// At the function's entry a jump to the handler, the rest of the instructions that it cuts filled with NOPs; in
/// the handler the stop point, a copy of the instructions, and a jump back behind them. A landing pad (ENDBR64,
/// Intel SDM volume 1, 17.3) at the entry stays where it is, and the jump lies behind it: indirect calls must
/// still find it.
public struct InlineDetourPlan: Sendable {
    /// What stands at the handler's start, for the hypervisor to notice a call by.
    public enum StopPoint: Hashable, Sendable, CaseIterable {
        case none
        /// A NOP: the place for a breakpoint that is not part of the guest's code. Without one a caller runs through.
        case outOfBand
        /// INT3.
        case breakpoint
        /// VMCALL.
        case hypercall

        var bytes: [UInt8] {
            switch self {
            case .none: []
            case .outOfBand: [0x90]
            case .breakpoint: [0xcc]
            case .hypercall: [0x0f, 0x01, 0xc1]
            }
        }
    }

    /// As many bytes as any handler has: to look for slack before there is a plan.
    public static let maximumHandlerLength = 64

    /// The function's entry.
    public let entry: GuestVirtualAddress
    /// Where the jump is written: the entry, or behind its landing pad.
    public let patchAddress: GuestVirtualAddress
    /// What is there before.
    public let original: [UInt8]
    /// What is there when the detour is armed.
    public let patch: [UInt8]
    public let handlerAddress: GuestVirtualAddress
    public let handler: [UInt8]
    public let stopPoint: StopPoint
    public let relocation: PrologueRelocation

    /// - Parameters:
    ///   - code: the function's bytes from its entry on, as many as are to be searched for branches into the
    ///     replaced ones.
    ///   - handlerAddress: where the handler is to lie.
    public init(
        code: [UInt8], entry: GuestVirtualAddress, handlerAddress: GuestVirtualAddress, mode: DecodingMode,
        stopPoint: StopPoint
    ) throws(InlineDetourError) {
        let first = InstructionDecoder(mode: mode).decode(code, at: entry.rawValue)
        let pad = mode == .long64 && first?.mnemonic == .endbr64 ? Int(first?.length ?? 0) : 0
        let patchAddress = entry + UInt64(pad)
        let copy = handlerAddress + UInt64(stopPoint.bytes.count)
        let relocation: PrologueRelocation
        let copied: [UInt8]
        do throws(PrologueRefusal) {
            relocation = try PrologueRelocation(of: Array(code[pad...]), at: patchAddress.rawValue, mode: mode)
            copied = try relocation.bytes(at: copy.rawValue)
        } catch {
            throw .prologue(error)
        }
        guard
            let jump = PrologueRelocation.jump(from: patchAddress.rawValue, to: handlerAddress.rawValue, mode: mode)
        else { throw .slackOutOfReach(handlerAddress) }
        let fill = [UInt8](repeating: 0x90, count: max(0, relocation.replacedLength - jump.count))

        self.entry = entry
        self.patchAddress = patchAddress
        self.handlerAddress = handlerAddress
        self.stopPoint = stopPoint
        self.relocation = relocation
        original = Array(code[pad..<pad + relocation.replacedLength])
        patch = jump + fill
        handler = stopPoint.bytes + copied
    }

    /// Whether an instruction pointer lies in the handler.
    public func isInHandler(_ rip: UInt64) -> Bool { rip &- handlerAddress.rawValue < UInt64(handler.count) }

    /// Whether an instruction pointer lies behind the first of the replaced bytes: once they are replaced, its
    /// instruction is gone.
    public func isInsidePatch(_ rip: UInt64) -> Bool {
        rip != patchAddress.rawValue && rip &- patchAddress.rawValue < UInt64(patch.count)
    }

    /// Where a processor that stands inside the replaced bytes has to go on when they are replaced; nil where it
    /// stands on none of their instructions.
    public func counterpart(ofReplaced rip: UInt64) -> UInt64? {
        relocation.copyOffset(of: rip).map { handlerAddress.rawValue &+ UInt64(stopPoint.bytes.count + $0) }
    }

    /// Where a processor that stands in the handler has to go on when the function is as it was; nil where it
    /// stands on none of the handler's instructions.
    public func counterpart(inHandler rip: UInt64) -> UInt64? {
        guard isInHandler(rip) else { return nil }
        let offset = Int(rip &- handlerAddress.rawValue)
        // A landing pad that is executed twice does nothing, and callers are recognised at the entry.
        if offset == 0 { return entry.rawValue }
        return relocation.original(ofCopyOffset: offset - stopPoint.bytes.count)
    }

    /// What it takes to put the function back without this plan.
    func patch(at places: [InlinePlace], handlerAt slack: [InlinePlace]) -> CodePatch {
        var parts: [CodePatch.Place] = []
        var done = 0
        for place in places {
            let range = done..<done + place.count
            parts.append(
                CodePatch.Place(
                    physical: place.physical, original: Array(original[range]), patch: Array(patch[range])))
            done = range.upperBound
        }
        var counterparts: [CodePatch.Counterpart] = []
        for offset in handler.indices {
            guard let address = counterpart(inHandler: handlerAddress.rawValue &+ UInt64(offset)) else { continue }
            counterparts.append(CodePatch.Counterpart(offset: offset, address: GuestVirtualAddress(address)))
        }
        // The slack is the tail of one page.
        return CodePatch(
            places: parts, handler: handlerAddress, handlerPhysical: slack[0].physical,
            handlerLength: handler.count, counterparts: counterparts)
    }
}
