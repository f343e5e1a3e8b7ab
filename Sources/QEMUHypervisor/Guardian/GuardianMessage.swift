import GuestMemory
import HypervisorInterface
import X86

/// What Vigil tells its guardian, one message a datagram.
///
/// Both ends are the same executable, so registers travel as they lie in memory.
enum GuardianMessage: Equatable {
    case beat
    case pause
    case resume
    case insert(BreakpointSite)
    case remove(BreakpointSite)
    case handler(HandlerLocation?)
    case patch(CodePatch?)
    case replace(CodePatch.Place)
    case agent(Int, AgentTrace?)
    case hold(HeldCaller)
    case sentOff(slot: Int)
    case release(slot: Int)
    /// Vigil leaves in good order.
    case farewell
}

extension GuardianMessage {
    /// The message for an effect, or nil for one that the guardian has no use for.
    init?(_ effect: Effect) {
        switch effect {
        case .pause, .step: self = .pause
        case .resume: self = .resume
        case .insert(let site): self = .insert(site)
        case .remove(let site): self = .remove(site)
        case .handler(let location): self = .handler(location)
        case .patch(let patch): self = .patch(patch)
        case .replace(let place): self = .replace(place)
        case .agent(let number, let trace): self = .agent(number, trace)
        case .hold(let caller): self = .hold(caller)
        case .sentOff(let slot): self = .sentOff(slot: slot)
        case .release(let slot): self = .release(slot: slot)
        case .setRegisters, .writeCode, .writeData: return nil
        }
    }

    private enum Kind: UInt64 {
        case beat = 1
        case pause, resume, insert, remove, handler, hold, holdInDelay, sentOff, release, farewell, patch, replace,
            agent
    }

    /// The longest message, in bytes.
    static let maximumLength = 1024

    var bytes: [UInt8] {
        var words: [UInt64]
        var tail: [UInt8] = []
        switch self {
        case .beat: words = [Kind.beat.rawValue]
        case .pause: words = [Kind.pause.rawValue]
        case .resume: words = [Kind.resume.rawValue]
        case .insert(let site): words = [Kind.insert.rawValue] + Self.words(site)
        case .remove(let site): words = [Kind.remove.rawValue] + Self.words(site)
        case .handler(nil): words = [Kind.handler.rawValue]
        case .handler(let location?):
            words = [
                Kind.handler.rawValue, location.entry.rawValue, location.address.rawValue,
                location.physical.rawValue, UInt64(location.length), UInt64(location.waitOffset),
            ]
        case .patch(nil): words = [Kind.patch.rawValue]
        case .patch(let patch?):
            words = [Kind.patch.rawValue] + patch.words
            tail = patch.places.flatMap { $0.original + $0.patch }
        case .replace(let place):
            words = [
                Kind.replace.rawValue, place.physical.rawValue, UInt64(place.original.count), UInt64(place.patch.count),
                place.entrance?.rawValue ?? 0,
            ]
            tail = place.original + place.patch
        case .agent(let number, nil): words = [Kind.agent.rawValue, UInt64(number)]
        case .agent(let number, let trace?):
            words = [
                Kind.agent.rawValue, UInt64(number), trace.header.rawValue, trace.magic,
                UInt64(trace.mayLeaveOffset), UInt64(trace.stopWantedOffset), UInt64(trace.stageOffset),
                UInt64(trace.leaveByItself), UInt64(trace.leaving), UInt64(trace.left),
                trace.gate.lowerBound, trace.gate.upperBound,
            ]
            words += trace.block.words
        case .hold(let caller):
            if let delay = caller.delay {
                words = [
                    Kind.holdInDelay.rawValue, UInt64(caller.slot), delay.entry.rawValue, delay.arrivalRSP,
                    UInt64(delay.vcpu.index),
                ]
                words += OwedBlock.words(delay.owed)
            } else {
                words = [Kind.hold.rawValue, UInt64(caller.slot)]
            }
            tail = withUnsafeBytes(of: caller.registers) { Array($0) }
            if let vectors = caller.vectors { tail += withUnsafeBytes(of: vectors) { Array($0) } }
        case .sentOff(let slot): words = [Kind.sentOff.rawValue, UInt64(slot)]
        case .release(let slot): words = [Kind.release.rawValue, UInt64(slot)]
        case .farewell: words = [Kind.farewell.rawValue]
        }
        return words.flatMap { word in withUnsafeBytes(of: word) { Array($0) } } + tail
    }

    private static func words(_ site: BreakpointSite) -> [UInt64] {
        switch site {
        case .execution(let address): [0, address.rawValue]
        case .access(let address, let length): [UInt64(length), address.rawValue]
        }
    }

    init?(bytes: [UInt8]) {
        func word(_ index: Int) -> UInt64? {
            guard bytes.count >= 8 * (index + 1) else { return nil }
            return bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 8 * index, as: UInt64.self) }
        }
        func int(_ index: Int) -> Int? { word(index).flatMap { Int(exactly: $0) } }
        func site() -> BreakpointSite? {
            guard let length = int(1), let address = word(2).map(GuestVirtualAddress.init) else { return nil }
            return length == 0 ? .execution(address) : .access(address, length: length)
        }
        func registers(after words: Int) -> (general: Registers, vectors: VectorRegisters?)? {
            let end = 8 * words + MemoryLayout<Registers>.size
            let hasVectors = bytes.count == end + MemoryLayout<VectorRegisters>.size
            guard bytes.count == end || hasVectors else { return nil }
            return bytes.withUnsafeBytes {
                (
                    $0.loadUnaligned(fromByteOffset: 8 * words, as: Registers.self),
                    hasVectors ? $0.loadUnaligned(fromByteOffset: end, as: VectorRegisters.self) : nil
                )
            }
        }
        guard let kind = word(0).flatMap(Kind.init) else { return nil }
        switch kind {
        case .beat: self = .beat
        case .pause: self = .pause
        case .resume: self = .resume
        case .insert:
            guard let site = site() else { return nil }
            self = .insert(site)
        case .remove:
            guard let site = site() else { return nil }
            self = .remove(site)
        case .handler:
            guard let entry = word(1), let address = word(2), let physical = word(3), let length = int(4),
                let waitOffset = int(5)
            else {
                self = .handler(nil)
                return
            }
            self = .handler(
                HandlerLocation(
                    entry: GuestVirtualAddress(entry), address: GuestVirtualAddress(address),
                    physical: GuestPhysicalAddress(physical), length: length, waitOffset: waitOffset))
        case .patch:
            if bytes.count == 8 {
                self = .patch(nil)
                return
            }
            guard let patch = CodePatch(message: bytes, word: word) else { return nil }
            self = .patch(patch)
        case .replace:
            guard let physical = word(1), let original = int(2), let patch = int(3),
                let entrance = word(4),
                original <= Self.maximumLength, patch <= Self.maximumLength, bytes.count == 40 + original + patch
            else { return nil }
            self = .replace(
                CodePatch.Place(
                    physical: GuestPhysicalAddress(physical), original: Array(bytes[40..<40 + original]),
                    patch: Array(bytes[(40 + original)...]),
                    entrance: entrance == 0 ? nil : GuestVirtualAddress(entrance)))
        case .agent:
            guard let number = int(1) else { return nil }
            guard bytes.count > 16 else {
                self = .agent(number, nil)
                return
            }
            func half(_ index: Int) -> UInt32? { word(index).flatMap { UInt32(exactly: $0) } }
            guard let header = word(2), let magic = word(3), let mayLeave = int(4), let stopWanted = int(5),
                let stage = int(6), let byItself = half(7), let leaving = half(8), let left = half(9),
                let start = word(10), let end = word(11), start <= end, let block = PoolBlock(at: 12, word)
            else { return nil }
            self = .agent(
                number,
                AgentTrace(
                    header: GuestPhysicalAddress(header), magic: magic, mayLeaveOffset: mayLeave,
                    stopWantedOffset: stopWanted, stageOffset: stage, leaveByItself: byItself, leaving: leaving,
                    left: left, gate: start..<end, block: block))
        case .hold:
            guard let slot = int(1), let registers = registers(after: 2) else { return nil }
            self = .hold(HeldCaller(slot: slot, registers: registers.general, vectors: registers.vectors))
        case .holdInDelay:
            guard let slot = int(1), let entry = word(2), let arrivalRSP = word(3), let index = int(4),
                let kind = word(5), let block = PoolBlock(at: 6, word), let registers = registers(after: 10)
            else { return nil }
            let delay = HeldCaller.Delay(
                entry: GuestVirtualAddress(entry), arrivalRSP: arrivalRSP, vcpu: VCPU(index),
                owed: OwedBlock(kind: kind, block))
            self = .hold(
                HeldCaller(
                    slot: slot, registers: registers.general, delay: delay, vectors: registers.vectors))
        case .sentOff:
            guard let slot = int(1) else { return nil }
            self = .sentOff(slot: slot)
        case .release:
            guard let slot = int(1) else { return nil }
            self = .release(slot: slot)
        case .farewell: self = .farewell
        }
    }
}

extension PoolBlock {
    fileprivate var words: [UInt64] { [address.rawValue, UInt64(size), UInt64(tag), free.rawValue] }

    /// - Parameter word: one of a message's words by its number.
    fileprivate init?(at first: Int, _ word: (Int) -> UInt64?) {
        guard let address = word(first), let size = word(first + 1).flatMap({ Int(exactly: $0) }),
            let tag = word(first + 2).flatMap({ UInt32(exactly: $0) }), let free = word(first + 3)
        else { return nil }
        self.init(address: GuestVirtualAddress(address), size: size, tag: tag, free: GuestVirtualAddress(free))
    }
}

extension OwedBlock {
    /// A kind, and the block.
    fileprivate static func words(_ owed: OwedBlock?) -> [UInt64] {
        switch owed {
        case nil: [0, 0, 0, 0, 0]
        case .result(let block): [1] + block.words
        case .unlessSuccessful(let block): [2] + block.words
        case .unlessCalled(let block): [3] + block.words
        }
    }

    fileprivate init?(kind: UInt64, _ block: PoolBlock) {
        switch kind {
        case 1: self = .result(block)
        case 2: self = .unlessSuccessful(block)
        case 3: self = .unlessCalled(block)
        default: return nil
        }
    }
}

extension CodePatch {
    /// What a message says before the bytes themselves.
    fileprivate var words: [UInt64] {
        [
            handler.rawValue, handlerPhysical.rawValue, UInt64(handlerLength), UInt64(places.count),
            UInt64(counterparts.count),
        ] + places.flatMap { [$0.physical.rawValue, UInt64($0.original.count)] }
            + counterparts.flatMap { [UInt64($0.offset), $0.address.rawValue] }
    }

    /// - Parameter word: one of the message's words by its number; the first is the message's kind.
    fileprivate init?(message bytes: [UInt8], word: (Int) -> UInt64?) {
        let most = UInt64(GuardianMessage.maximumLength)
        guard let address = word(1), let physical = word(2), let length = word(3), let placeCount = word(4),
            let counterpartCount = word(5), max(length, placeCount, counterpartCount) <= most
        else { return nil }
        var next = 6
        func pair() -> (UInt64, UInt64)? {
            defer { next += 2 }
            guard let first = word(next), let second = word(next + 1) else { return nil }
            return (first, second)
        }
        var parts: [(UInt64, Int)] = []
        for _ in 0..<placeCount {
            guard let (place, count) = pair(), count <= most else { return nil }
            parts.append((place, Int(count)))
        }
        var counterparts: [Counterpart] = []
        for _ in 0..<counterpartCount {
            guard let (offset, target) = pair(), offset <= most else { return nil }
            counterparts.append(Counterpart(offset: Int(offset), address: GuestVirtualAddress(target)))
        }
        var rest = bytes.dropFirst(8 * next)
        guard rest.count == parts.reduce(0, { $0 + 2 * $1.1 }) else { return nil }
        var places: [Place] = []
        for (place, count) in parts {
            let original = Array(rest.prefix(count))
            let patch = Array(rest.dropFirst(count).prefix(count))
            places.append(Place(physical: GuestPhysicalAddress(place), original: original, patch: patch))
            rest = rest.dropFirst(2 * count)
        }
        self.init(
            places: places, handler: GuestVirtualAddress(address), handlerPhysical: GuestPhysicalAddress(physical),
            handlerLength: Int(length), counterparts: counterparts)
    }
}

/// What the guardian knows to be in force: the sum of what it was told.
struct GuardedState: Equatable {
    var sites: Set<BreakpointSite> = []
    var handler: HandlerLocation?
    var patch: CodePatch?
    /// Replaced bytes of the kernel's code, by where they are.
    var replaced: [GuestPhysicalAddress: CodePatch.Place] = [:]
    /// Agents in the guest, by their numbers.
    var agents: [Int: AgentTrace] = [:]
    var held: [Int: HeldCaller] = [:]
    /// Slots of callers in delays that Vigil was not working on: they have the registers for that, and come
    /// back by themselves.
    var sentOff: Set<Int> = []
    /// A stop without a breakpoint is Vigil's own, if the machine stands.
    var stopIsOurs = false

    /// Addresses that somebody's access of would stop the machine.
    var watchedAddresses: [UInt64] {
        sites.compactMap { if case .access(let address, _) = $0 { address.rawValue } else { nil } }
    }

    mutating func apply(_ message: GuardianMessage) {
        switch message {
        case .pause: stopIsOurs = true
        case .resume: stopIsOurs = false
        case .insert(let site): sites.insert(site)
        case .remove(let site): sites.remove(site)
        case .handler(let location): handler = location
        case .patch(let patch): self.patch = patch
        case .replace(let place): replaced[place.physical] = place.patch.isEmpty ? nil : place
        case .agent(let number, let trace): agents[number] = trace
        case .hold(let caller):
            held[caller.slot] = caller
            sentOff.remove(caller.slot)
        case .sentOff(let slot): sentOff.insert(slot)
        case .release(let slot):
            held[slot] = nil
            sentOff.remove(slot)
        case .beat, .farewell: break
        }
    }
}
