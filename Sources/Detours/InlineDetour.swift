import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// Interception of a guest function by a jump in its first bytes: the classic way.
///
/// The handler stays in the kernel's slack as long as the detour is armed. The guest can read both, so this is for
/// hypervisors that hide them and for users who allow visible patches; `PatchlessDetour` is for the others.
///
/// All changes are made while the machine stands. A vCPU that stands in the bytes concerned is moved along. A
/// thread that was interrupted there and has no vCPU is not seen when arming: whoever knows of such threads says
/// where they will go on. When disarming it is: where it will go on lies in RAM, all of which is searched. The
/// bytes are compared before they are replaced and before they are put back.
public final class InlineDetour {
    /// What became of the handler when the detour was disarmed.
    public enum Disarmed: Equatable, Sendable {
        /// It is zeroes again.
        case clean
        /// It had to stay; `disarm` may be tried again for it. The function itself is as it was.
        case handlerKept(String)
    }

    /// How much of a function is searched for branches into the replaced bytes, in bytes.
    public static let bodyLimit = 16 << 10

    public let entry: GuestVirtualAddress
    public let slack: KernelSlack
    public let effects: GuestEffects
    public let mode: DecodingMode
    public let stopPoint: InlineDetourPlan.StopPoint
    public let allowVisiblePatches: Bool
    /// The detour's bytes, while it is armed.
    public private(set) var armed: InlineDetourPlan?
    /// The handler's bytes, while it is in the guest.
    public private(set) var handler: InlineDetourPlan?
    /// What was taken out to be put back later.
    public private(set) var withdrawn: InlineDetourPlan?

    /// The most RAM that is searched for threads in the handler, in bytes: the guest stands meanwhile.
    public static let searchLimit: UInt64 = 8 << 30

    /// The most that an interrupt pushes below a stack pointer, in bytes: five words and an error code, aligned to 16
    /// (Intel SDM volume 3, 6.14.2).
    private static let interruptFrame: UInt64 = 64

    private let memory: KernelMemory
    /// Where the replaced bytes lay when they were replaced.
    private var armedPlaces: [InlinePlace] = []
    /// A change could not be taken back: some of the function's bytes are replaced, others not.
    private var isHalfArmed = false

    /// - Parameters:
    ///   - slack: room for `InlineDetourPlan.maximumHandlerLength` bytes.
    ///   - stopPoint: what stands at the handler's start, which is the slack's address.
    public init(
        entry: GuestVirtualAddress, slack: KernelSlack, memory: KernelMemory, effects: GuestEffects,
        allowVisiblePatches: Bool, stopPoint: InlineDetourPlan.StopPoint = .outOfBand, mode: DecodingMode = .long64
    ) {
        self.entry = entry
        self.slack = slack
        self.memory = memory
        self.effects = effects
        self.allowVisiblePatches = allowVisiblePatches
        self.stopPoint = stopPoint
        self.mode = mode
    }

    /// The guest's bytes that are replaced now.
    public var ownPatches: [CodePatch.Place] {
        var patches: [CodePatch.Place] = []
        if let armed { patches += Self.patches(armed.original, armed.patch, at: armedPlaces) }
        if let handler, let places = try? places(of: handler.handlerAddress, handler.handler.count, in: memory) {
            patches += Self.patches([UInt8](repeating: 0, count: handler.handler.count), handler.handler, at: places)
        }
        return patches
    }

    private static func patches(
        _ original: [UInt8], _ patch: [UInt8], at places: [InlinePlace]
    ) -> [CodePatch.Place] {
        var start = 0
        return places.map { place in
            defer { start += place.count }
            return CodePatch.Place(
                physical: place.physical, original: Array(original[start..<start + place.count]),
                patch: Array(patch[start..<start + place.count]))
        }
    }

    /// What arming would write, from the function's bytes as they are now. Nothing is changed.
    ///
    /// The function is searched for branches as far as its pages adjoin and are present, up to `bodyLimit`.
    public func plan() throws(InlineDetourError) -> InlineDetourPlan {
        try Self.plan(entry: entry, slack: slack, memory: memory, stopPoint: stopPoint, mode: mode)
    }

    /// What arming such a detour would write, in memory that need not be a machine's that can be controlled.
    public static func plan(
        entry: GuestVirtualAddress, slack: KernelSlack, memory: KernelMemory,
        stopPoint: InlineDetourPlan.StopPoint = .outOfBand, mode: DecodingMode = .long64
    ) throws(InlineDetourError) -> InlineDetourPlan {
        let plan = try InlineDetourPlan(
            code: try readBody(of: entry, in: memory), entry: entry, handlerAddress: slack.address, mode: mode,
            stopPoint: stopPoint)
        guard UInt64(plan.handler.count) <= slack.available else {
            throw .slackTooSmall(slack.address, available: slack.available, needed: plan.handler.count)
        }
        return plan
    }

    /// The processor's own view of the function, page by page until one is not there.
    private static func readBody(
        of entry: GuestVirtualAddress, in memory: KernelMemory
    ) throws(InlineDetourError) -> [UInt8] {
        var body: [UInt8] = []
        while body.count < bodyLimit {
            let next = entry + UInt64(body.count)
            let count = min(bodyLimit - body.count, 4096 - Int(next.rawValue & 0xfff))
            do throws(MemoryError) {
                body += try memory.hardware.bytes(at: next, count: UInt64(count))
            } catch {
                if body.isEmpty { throw .memory(error, doing: "reading the function at \(entry)") }
                break
            }
        }
        return body
    }

    // MARK: Arming

    /// Writes the handler, then the jump, and moves vCPUs that stand in the replaced bytes to their copies.
    /// - Parameter threads: where threads go on that no vCPU runs now; one inside the replaced bytes prevents
    ///   arming, until it has gone on.
    /// - Throws: with the guest as it was, unless `unfinished`.
    public func arm(threadsAt threads: [UInt64] = []) throws(InlineDetourError) {
        try arm(over: nil, threadsAt: threads)
    }

    /// Puts back what `takeOut` took out, if the function's bytes are those that were there before. Once: whatever
    /// comes of it, there is nothing to put back afterwards.
    /// - Throws: with the guest as it was, unless `unfinished`.
    public func putBack() throws(InlineDetourError) {
        guard let plan = withdrawn else { return }
        withdrawn = nil
        try arm(over: plan, threadsAt: [])
    }

    /// - Parameter former: what was there before, which has to be what would be written now.
    private func arm(over former: InlineDetourPlan?, threadsAt threads: [UInt64]) throws(InlineDetourError) {
        guard allowVisiblePatches else { throw .visible }
        guard armed == nil else { return }
        try whilePaused { () throws(InlineDetourError) in
            if let former {
                let places = try places(of: former.patchAddress, former.original.count, in: memory.hardware)
                guard try contents(of: places) == former.original else { throw .functionChanged(former.patchAddress) }
            }
            let plan = try self.plan()
            let entryPlaces = try places(of: plan.patchAddress, plan.patch.count, in: memory.hardware)
            let slackPlaces = try places(of: plan.handlerAddress, plan.handler.count, in: memory.hardware)
            let found = try contents(of: slackPlaces)
            // The same bytes at the same place are what an earlier detour had to leave.
            guard found.allSatisfy({ $0 == 0 }) || found == plan.handler else {
                throw .slackInUse(plan.handlerAddress)
            }
            if let thread = threads.first(where: plan.isInsidePatch) { throw .threadInside(.init(thread)) }
            let moves = try movesIntoHandler(of: plan)
            try note(plan.patch(at: entryPlaces, handlerAt: slackPlaces))
            defer { if armed == nil, handler == nil { try? effects.notePatch(nil) } }
            try perform(
                [
                    .write(plan.handler, over: found, at: slackPlaces),
                    .write(plan.patch, over: plan.original, at: entryPlaces),
                ] + moves
            ) { unfinished in
                armed = plan
                handler = plan
                armedPlaces = entryPlaces
                isHalfArmed = unfinished
            }
        }
    }

    private func movesIntoHandler(of plan: InlineDetourPlan) throws(InlineDetourError) -> [Change] {
        var moves: [Change] = []
        for (vcpu, registers) in try processors() where plan.isInsidePatch(registers.rip) {
            guard let target = plan.counterpart(ofReplaced: registers.rip) else {
                throw .processorInside(vcpu, GuestVirtualAddress(registers.rip))
            }
            moves.append(.move(vcpu, registers, to: target))
        }
        return moves
    }

    // MARK: Disarming

    /// Puts the function's bytes back, moves vCPUs out of the handler, and zeroes it, if nobody can come back to it.
    /// - Parameter threads: where threads go on that no vCPU runs now; one inside the handler keeps it there.
    /// - Throws: with the detour as it was, unless `unfinished`. `entryChanged` where the function's bytes are not
    ///   those that were written.
    @discardableResult
    public func disarm(threadsAt threads: [UInt64] = []) throws(InlineDetourError) -> Disarmed {
        withdrawn = nil
        guard handler != nil else { return .clean }
        return try whilePaused { () throws(InlineDetourError) in
            if let armed { try restore(armed) }
            guard let handler else { return .clean }
            return try zero(handler, threadsAt: threads)
        }
    }

    /// Takes everything out as `disarm` does, and remembers it for `putBack`.
    /// - Throws: with the detour as it was, unless `unfinished`.
    public func takeOut() throws(InlineDetourError) -> Disarmed {
        guard let plan = armed else { return .clean }
        let result = try disarm()
        withdrawn = plan
        return result
    }

    private func restore(_ plan: InlineDetourPlan) throws(InlineDetourError) {
        // Where the page is not resident, its frame may still be, or hold something else by now.
        let current = try? places(of: plan.patchAddress, plan.original.count, in: memory)
        let entryPlaces = current ?? armedPlaces
        let found = try contents(of: entryPlaces)
        // A page that was read from its file again has the original bytes.
        let isOriginal = found == plan.original || (current == nil && found != plan.patch)
        let isOurs = zip(found, zip(plan.patch, plan.original)).allSatisfy { byte, ours in
            byte == ours.0 || (isHalfArmed && byte == ours.1)
        }
        guard isOriginal || isOurs else { throw .entryChanged(plan.patchAddress) }
        var changes: [Change] = isOriginal ? [] : [.write(plan.original, over: found, at: entryPlaces)]
        for (vcpu, registers) in try processors() {
            guard let target = plan.counterpart(inHandler: registers.rip) else { continue }
            changes.append(.move(vcpu, registers, to: target))
        }
        var isUnfinished = false
        do throws(InlineDetourError) {
            try perform(changes) { unfinished in isUnfinished = unfinished }
        } catch {
            if isUnfinished { isHalfArmed = true }
            throw error
        }
        armed = nil
        armedPlaces = []
        isHalfArmed = false
    }

    private func zero(_ plan: InlineDetourPlan, threadsAt threads: [UInt64]) throws(InlineDetourError) -> Disarmed {
        if plan.relocation.calls {
            return .handlerKept("the moved instructions hold a call, which may still return into the handler")
        }
        let processors = try self.processors()
        if let inside = processors.first(where: { plan.isInHandler($0.registers.rip) }) {
            return .handlerKept("\(inside.vcpu) stands in the handler")
        }
        if threads.contains(where: plan.isInHandler) {
            return .handlerKept("a waiting thread will go on in the handler")
        }
        let dead = processors.flatMap { deadWords(of: $0.registers) }
        if let reason = try threadInHandler(of: plan, except: dead) { return .handlerKept(reason) }
        let slackPlaces = try places(of: plan.handlerAddress, plan.handler.count, in: memory)
        let found = try contents(of: slackPlaces)
        guard found == plan.handler else { return .handlerKept("somebody else changed it") }
        let zeroes = [UInt8](repeating: 0, count: found.count)
        try perform([.write(zeroes, over: found, at: slackPlaces)]) { _ in }
        handler = nil
        try note(nil)
        return .clean
    }

    /// Whether a thread without a vCPU may go on in the handler. Where it will go on was pushed by its processor,
    /// as an aligned word (Intel SDM volume 3, 6.14.2), so with no such word in RAM there is none.
    /// - Parameter dead: memory in which nothing is pushed that anybody will come back to.
    /// - Returns: why there may be one; nil for a proof that there is none.
    private func threadInHandler(
        of plan: InlineDetourPlan, except dead: [Range<UInt64>]
    ) throws(InlineDetourError) -> String? {
        let machine = effects.machine
        guard machine.writesDataWhileRunning, machine.memory.size <= Self.searchLimit else {
            return "this much RAM, read this way, cannot be searched for interrupted threads"
        }
        let inside = plan.handlerAddress.rawValue..<plan.handlerAddress.rawValue &+ UInt64(plan.handler.count)
        do {
            let word = try machine.memory.firstWord(
                in: inside, wordSize: memory.pagingMode.pointerSize, except: dead
            ) { () throws(HypervisorError) in
                // A sign of life, too.
                _ = try machine.runState()
            }
            return word.map { "the word at \($0) in RAM may be where an interrupted thread goes on in it" }
        } catch let error as HypervisorError {
            throw .hypervisor(error)
        } catch {
            return "RAM could not be searched for interrupted threads: \(error)"
        }
    }

    /// What lies below the stack pointer of a caller that stands at the function's entry, as far as it is certain to
    /// be its stack: the rest of the page, and where an interrupt's frame would be pushed. An interrupt on the caller's
    /// way along the jump leaves its address there.
    /// - Returns: ranges of physical addresses.
    private func deadWords(of registers: Registers) -> [Range<UInt64>] {
        guard registers.rip == entry.rawValue, registers.privilegeLevel == 0, registers.rsp >= 0x2000 else { return [] }
        let rsp = registers.rsp
        let page = (rsp &- 1) & ~0xfff
        let frame = rsp &- Self.interruptFrame
        let parts = frame < page ? [page..<rsp, frame..<page] : [page..<rsp]
        return parts.compactMap { part in
            let start = try? memory.hardware.translate(GuestVirtualAddress(part.lowerBound)).physical.rawValue
            return start.map { $0..<$0 + UInt64(part.count) }
        }
    }

    private func note(_ patch: CodePatch?) throws(InlineDetourError) {
        do throws(HypervisorError) { try effects.notePatch(patch) } catch { throw .hypervisor(error) }
    }

    /// The machine was reset: nothing of the detour is there any more.
    public func forgetEverything() {
        armed = nil
        withdrawn = nil
        armedPlaces = []
        handler = nil
        isHalfArmed = false
    }
}
