import TestSupport

/// Where generated functions and what they use lie.
struct RelocationPlaces {
    /// The functions' entry.
    var entry: UInt64
    /// Data that functions read and write.
    var data: UInt64
    /// A function that may be called.
    var stub: UInt64
    /// Where every function ends.
    var arrival: UInt64

    static let dataSize = 1024
    /// Behind the data: which exit a function took, how often it called, and the stub's address.
    var exitTaken: UInt64 { data + UInt64(Self.dataSize) }
    var callCount: UInt64 { data + UInt64(Self.dataSize) + 8 }
    var stubPointer: UInt64 { data + UInt64(Self.dataSize) + 16 }
    /// How far the first exit lies before the entry.
    static let before: UInt64 = 64
}

/// A function made of random instructions such as prologues have.
struct RelocationProgram {
    enum Template: CaseIterable {
        case move, immediate, push, pop, subtractFromStack, storeAtStack, arithmetic, nop, flags
        case address, load, store, compareImmediate, storeImmediate, vector
        case shortJump, nearJump, innerJump, countedJump, loop, call, indirectCall, earlyEnd
    }

    /// The function's bytes, from its entry on.
    private(set) var bytes: [UInt8] = []
    /// What stands before the entry: an exit.
    private(set) var bytesBefore: [UInt8] = []
    /// The instructions' starts, and what each was made from.
    private(set) var starts: [(offset: Int, template: Template)] = []

    private let places: RelocationPlaces
    private var random: SeededGenerator
    private var hasCalled = false
    /// Starts that no jump may lead to: inside a loop.
    private var closed: Set<Int> = []
    /// One-byte distances to instructions that follow.
    private var forward: [(offset: Int, start: Int)] = []
    /// One-byte and four-byte distances to the exits.
    private var exits: [(offset: Int, size: Int, exit: Int)] = []

    init(seed: UInt64, places: RelocationPlaces, length: Int) {
        self.places = places
        random = SeededGenerator(seed: seed)
        while bytes.count < length, let template = Template.allCases.randomElement(using: &random) {
            emit(template)
        }
        finish()
    }

    private mutating func pick(_ range: ClosedRange<UInt8>) -> UInt8 { UInt8.random(in: range, using: &random) }
    private mutating func chance() -> Bool { Bool.random(using: &random) }

    /// A general register other than RSP; RCX only if asked for.
    private mutating func register(excludingRCX: Bool = false) -> UInt8 {
        while true {
            let number = pick(0...15)
            if number != 4, number != 1 || !excludingRCX { return number }
        }
    }

    private mutating func begin(_ template: Template) { starts.append((bytes.count, template)) }

    private mutating func append32(_ value: UInt64) {
        bytes += (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }

    /// REX, opcode, and a register with an operand relative to RIP, `immediate` behind it.
    private mutating func relative(
        _ prefix: [UInt8], rex: UInt8?, _ opcode: [UInt8], register: UInt8, to target: UInt64, immediate: [UInt8] = []
    ) {
        bytes += prefix
        if let rex { bytes.append(0x40 | rex | (register >> 3) << 2) }
        bytes += opcode + [(register & 7) << 3 | 5]
        let end = places.entry + UInt64(bytes.count + 4 + immediate.count)
        append32(target &- end)
        bytes += immediate
    }

    private mutating func dataAddress() -> UInt64 { places.data + UInt64.random(in: 0..<1000, using: &random) }

    private mutating func exitDistance(_ size: Int) {
        exits.append((bytes.count, size, Int(pick(0...3))))
        bytes += [UInt8](repeating: 0, count: size)
    }

    private mutating func emit(_ template: Template) {
        switch template {
        case .earlyEnd:
            guard pick(0...7) == 0 else { return }
            begin(template)
            bytes.append(0xe9)
            exitDistance(4)
        case .subtractFromStack:
            // What a call has left below the stack pointer is its return address, which the copy's is not.
            guard !hasCalled else { return }
            begin(template)
            bytes += chance() ? [0x48, 0x83, 0xec, pick(1...15) * 8] : [0x48, 0x81, 0xec, pick(1...31) * 8, 0, 0, 0]
        case .loop: emitLoop()
        case .move, .immediate, .push, .pop, .storeAtStack, .arithmetic, .nop, .flags:
            begin(template)
            emitIndependent(template)
        case .address, .load, .store, .compareImmediate, .storeImmediate, .vector:
            begin(template)
            emitRelative(template)
        case .shortJump, .nearJump, .innerJump, .countedJump, .call, .indirectCall:
            begin(template)
            emitBranch(template)
        }
    }

    private mutating func emitIndependent(_ template: Template) {
        let (a, b) = (register(excludingRCX: true), register())
        switch template {
        case .move: bytes += [0x48 | a >> 3 | (b >> 3) << 2, 0x89, 0xc0 | (b & 7) << 3 | a & 7]
        case .immediate:
            if a > 7 { bytes.append(0x41) }
            bytes.append(0xb8 | a & 7)
            append32(random.next())
        case .push: bytes += b > 7 || chance() ? [0x40 | b >> 3, 0x50 | b & 7] : [0x50 | b]
        case .pop: bytes += a > 7 ? [0x41, 0x58 | a & 7] : [0x58 | a]
        case .storeAtStack: bytes += [0x48 | (b >> 3) << 2, 0x89, 0x44 | (b & 7) << 3, 0x24, pick(1...15) * 8]
        case .arithmetic:
            let opcode: UInt8 = [0x01, 0x29, 0x31, 0x39, 0x85, 0x21, 0x09, 0x11][Int(pick(0...7))]
            bytes += [(chance() ? 0x48 : 0x40) | a >> 3 | (b >> 3) << 2, opcode, 0xc0 | (b & 7) << 3 | a & 7]
        case .nop:
            let nops: [[UInt8]] = [
                [0x90], [0x66, 0x90], [0xf3, 0x0f, 0x1e, 0xfa], [0x0f, 0x1f, 0x44, 0, 0], [0xf3, 0x90],
                [0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
            ]
            bytes += nops[Int(pick(0...5))]
        default:
            // SETcc, CMOVcc, PUSHFQ, CMC
            let some: [[UInt8]] = [
                [0x40 | a >> 3, 0x0f, 0x90 | pick(0...15), 0xc0 | a & 7],
                [0x48 | b >> 3 | (a >> 3) << 2, 0x0f, 0x40 | pick(0...15), 0xc0 | (a & 7) << 3 | b & 7],
                [0x9c], [0xf5],
            ]
            bytes += some[Int(pick(0...3))]
        }
    }

    private mutating func emitRelative(_ template: Template) {
        let (a, b, target) = (register(excludingRCX: true), register(), dataAddress())
        switch template {
        case .address: relative([], rex: 8, [0x8d], register: a, to: target)
        case .load:
            let opcode: [UInt8] = [[0x8b], [0x03], [0x33], [0x0f, 0xb6], [0x63], [0x3b]][Int(pick(0...5))]
            relative([], rex: chance() ? 8 : 0, opcode, register: a, to: target)
        case .store:
            let opcode: [UInt8] = [[0x89], [0x01], [0x88], [0x87], [0x0f, 0xc1]][Int(pick(0...4))]
            let stored = opcode == [0x87] || opcode == [0x0f, 0xc1] ? a : b
            relative(opcode == [0x01] ? [0xf0] : [], rex: chance() ? 8 : 0, opcode, register: stored, to: target)
        case .compareImmediate:
            if chance() {
                relative([], rex: nil, [0x80], register: 7, to: target, immediate: [pick(0...255)])
            } else {
                relative([0x66], rex: nil, [0x81], register: 7, to: target, immediate: [pick(0...255), 1])
            }
        case .storeImmediate:
            relative([], rex: 8, [0xc7], register: 0, to: target, immediate: [pick(0...255), 2, 3, pick(0...255)])
        default:
            let opcode: [UInt8] = [[0x0f, 0x10], [0x0f, 0x11]][Int(pick(0...1))]
            relative(chance() ? [0xf3] : [], rex: 0, opcode, register: pick(0...15), to: target)
        }
    }

    private mutating func emitBranch(_ template: Template) {
        switch template {
        case .shortJump:
            if pick(0...7) == 0 { bytes.append(0x3e) }
            bytes.append(0x70 | pick(0...15))
            exitDistance(1)
        case .nearJump:
            bytes += [0x0f, 0x80 | pick(0...15)]
            exitDistance(4)
        case .innerJump:
            bytes.append(0x70 | pick(0...15))
            forward.append((bytes.count, starts.count + Int(pick(0...2))))
            bytes.append(0)
        case .countedJump:
            if pick(0...3) == 0 { bytes.append(0x67) }
            bytes.append(0xe0 | pick(0...3))
            exitDistance(1)
        case .call:
            hasCalled = true
            let end = places.entry + UInt64(bytes.count + 5)
            bytes.append(0xe8)
            append32(places.stub &- end)
        default:
            hasCalled = true
            relative([], rex: nil, [0xff], register: 2, to: places.stubPointer)
        }
    }

    /// mov ecx, N; an instruction; loop to it. Nothing else may jump in.
    private mutating func emitLoop() {
        begin(.loop)
        bytes += [0xb9, pick(1...4), 0, 0, 0]
        closed.insert(starts.count)
        let target = bytes.count
        emit([.move, .arithmetic, .load, .store, .push, .flags][Int(pick(0...5))])
        closed.insert(starts.count)
        begin(.loop)
        if chance() { bytes.append(0x67) }
        bytes += [0xe2, UInt8(truncatingIfNeeded: target - (bytes.count + 2))]
    }

    /// Fills distances in and writes the exits: number 0 at the end, 1 and 2 behind it, 3 before the entry.
    private mutating func finish() {
        var ends = [bytes.count, 0, 0, -Int(RelocationPlaces.before)]
        for (offset, start) in forward {
            let target = (start..<max(start, starts.count)).first { !closed.contains($0) }.map { starts[$0].offset }
            bytes[offset] = UInt8(truncatingIfNeeded: (target ?? ends[0]) - (offset + 1))
        }
        for exit in 0..<3 {
            ends[exit] = bytes.count
            bytes += exitBytes(exit, at: places.entry + UInt64(bytes.count))
        }
        bytesBefore = exitBytes(3, at: places.entry - RelocationPlaces.before)
        for (offset, size, exit) in exits {
            let distance = ends[exit] - (offset + size)
            for index in 0..<size { bytes[offset + index] = UInt8(truncatingIfNeeded: distance >> (8 * index)) }
        }
    }

    /// mov byte [exitTaken], exit; jmp [rip], and the arrival's address. No register and no flag changes.
    private func exitBytes(_ exit: Int, at address: UInt64) -> [UInt8] {
        func little(_ value: UInt64, _ count: Int) -> [UInt8] {
            (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
        }
        return [0xc6, 0x05] + little(places.exitTaken &- (address + 7), 4) + [UInt8(exit) + 1]
            + [0xff, 0x25, 0, 0, 0, 0] + little(places.arrival, 8)
    }
}
