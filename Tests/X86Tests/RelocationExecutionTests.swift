import CHandlerHarness
import Glibc
import TestSupport
import Testing
import X86

/// Memory of this process in which functions and their copies run.
final class RelocationBench {
    static let pages = 0x10000
    static let stackTop = 0x8000
    /// As far from the stack's top as functions use it.
    static let stackUse = 0x800

    let code: UnsafeMutableRawPointer
    let copies: [UnsafeMutableRawPointer]
    let data: UnsafeMutableRawPointer
    let stack: UnsafeMutableRawPointer
    let places: RelocationPlaces

    /// Everything that a run leaves behind.
    struct Outcome {
        var words = [UInt64](repeating: 0, count: Int(HARNESS_WORDS))
        var data: [UInt64] = []
        var stack: [UInt64] = []
    }

    init() throws {
        func map(_ hint: UInt64?) throws -> UnsafeMutableRawPointer {
            let fixed: Int32 = hint == nil ? 0 : 0x100000  // MAP_FIXED_NOREPLACE
            let mapping = mmap(
                hint.flatMap { UnsafeMutableRawPointer(bitPattern: UInt($0)) }, Self.pages,
                PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0)
            try #require(mapping != MAP_FAILED, "no executable memory for the test")
            return try #require(mapping)
        }
        // A part of the address space that nothing else is mapped to.
        let base: UInt64 = 0x2000_0000_0000
        code = try map(base)
        data = try map(base + 0x80_0000)
        stack = try map(nil)
        copies = [code + 0x8000, try map(base + 0x7f00_0000), try map(base - 0x7e00_0000)]
        let stub = base + 0xf000
        places = RelocationPlaces(entry: base + 0x1000, data: base + 0x80_0000, stub: stub, arrival: harness_entry())
        // inc dword [callCount]; xor rdx, [rsp+8]; ret
        let distance = places.callCount &- (stub + 6)
        let code: [UInt8] =
            [0xff, 0x05] + (0..<4).map { UInt8(truncatingIfNeeded: distance >> (8 * $0)) }
            + [0x48, 0x33, 0x54, 0x24, 0x08, 0xc3]
        (self.code + 0xf000).copyMemory(from: code, byteCount: code.count)
    }

    deinit {
        for mapping in [code, copies[1], copies[2], data, stack] { munmap(mapping, Self.pages) }
    }

    func write(_ bytes: [UInt8], at address: UInt64) {
        UnsafeMutableRawPointer(bitPattern: UInt(address))!.copyMemory(from: bytes, byteCount: bytes.count)
    }

    /// Calls the function with these registers, with stack and data filled from a seed.
    func run(_ state: [UInt64], fill: [UInt64]) -> Outcome {
        let stackStart = stack + Self.stackTop - Self.stackUse
        fill.withUnsafeBytes { bytes in
            stackStart.copyMemory(from: bytes.baseAddress!, byteCount: Self.stackUse + 0x100)
            data.copyMemory(from: bytes.baseAddress! + 64, byteCount: RelocationPlaces.dataSize)
        }
        (data + RelocationPlaces.dataSize).storeBytes(of: 0, as: UInt64.self)
        (data + RelocationPlaces.dataSize + 8).storeBytes(of: 0, as: UInt64.self)
        (data + RelocationPlaces.dataSize + 16).storeBytes(of: places.stub, as: UInt64.self)
        var outcome = Outcome()
        harness_run(state, &outcome.words, UnsafeRawPointer(bitPattern: UInt(places.entry)), nil, nil)
        outcome.data = words(data, RelocationPlaces.dataSize + 24)
        outcome.stack = words(stackStart, Self.stackUse + 0x100)
        return outcome
    }

    private func words(_ start: UnsafeMutableRawPointer, _ count: Int) -> [UInt64] {
        Array(UnsafeRawBufferPointer(start: start, count: count).bindMemory(to: UInt64.self))
    }

    /// Random registers: small counts in RCX, any of the status flags and DF.
    func randomState(_ random: inout SeededGenerator) -> [UInt64] {
        var state = (0..<Int(HARNESS_WORDS)).map { _ in random.next() }
        if random.next() % 4 != 0 { state[1] = random.next() % 3 }
        state[Int(HARNESS_FLAGS)] = 0x202 | state[Int(HARNESS_FLAGS)] & 0xcd5
        state[Int(HARNESS_RSP)] = UInt64(UInt(bitPattern: stack + Self.stackTop))
        state[Int(HARNESS_MXCSR)] = 0x1f80
        return state
    }
}

@Suite("Original and copy, executed") struct RelocationExecutionTests {
    static let programs = 20_000
    static let states = 3

    @Test("Random prologues do the same in place and detoured: registers, flags, stack, data, exits")
    func sideBySide() throws {
        let bench = try RelocationBench()
        let entry = bench.places.entry
        var random = SeededGenerator(seed: 5)
        let fill = (0..<(RelocationBench.stackUse + 0x200) / 8).map { _ in random.next() }
        var executed = 0
        var refused: [String: Int] = [:]
        var moved: [RelocationProgram.Template: Int] = [:]
        var exits: [UInt64: Int] = [:]

        for seed in 0..<UInt64(Self.programs) {
            let minimum = [5, 5, 5, 8, 12, 14].randomElement(using: &random)!
            let program = RelocationProgram(
                seed: seed, places: bench.places, length: minimum + Int.random(in: 0...12, using: &random))
            let relocation: PrologueRelocation
            do throws(PrologueRefusal) {
                relocation = try PrologueRelocation(
                    of: program.bytes, at: entry, mode: .long64, covering: minimum)
            } catch {
                #expect(Self.isRightToRefuse(error, program, minimum: minimum), "program \(seed): \(error)")
                refused[RelocationReason.of(error), default: 0] += 1
                continue
            }
            let copy = bench.copies[Int(seed % 3)]
            let copyAddress = UInt64(UInt(bitPattern: copy)) + (seed % 16)
            let bytes = try relocation.bytes(at: copyAddress)
            // What is wrong already is better not executed.
            try #require(try RelocationCheck.differences(relocation, at: copyAddress) == [], "program \(seed)")
            let jump = try #require(PrologueRelocation.jump(from: entry, to: copyAddress, mode: .long64))
            for (offset, template) in program.starts where offset < relocation.replacedLength {
                moved[template, default: 0] += 1
            }

            bench.write(program.bytesBefore, at: entry - RelocationPlaces.before)
            for _ in 0..<Self.states {
                let state = bench.randomState(&random)
                bench.write(program.bytes, at: entry)
                let original = bench.run(state, fill: fill)
                bench.write(bytes, at: copyAddress)
                bench.write(jump + [UInt8](repeating: 0x90, count: relocation.replacedLength - 5), at: entry)
                let detoured = bench.run(state, fill: fill)
                let same =
                    original.words == detoured.words && original.data == detoured.data
                    && Self.isSameStack(original.stack, detoured.stack, relocation, copyAddress)
                if !same {
                    Issue.record("program \(seed): \(program.bytes) from \(state) differs")
                    return
                }
                exits[original.data[RelocationPlaces.dataSize / 8], default: 0] += 1
            }
            executed += 1
        }

        print(
            "relocation: \(executed) random prologues executed with \(Self.states) register sets each; refused",
            refused.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
        #expect(executed + refused.values.reduce(0, +) == Self.programs)
        #expect(executed > 15_000)
        #expect(Set(refused.keys) == ["ends early", "branch into replaced bytes", "already hooked"])
        for template in RelocationProgram.Template.allCases { #expect(moved[template] ?? 0 > 20, "\(template)") }
        // Exits that the copies' own branches lead to were taken, too.
        #expect(Set(exits.keys) == [1, 2, 3, 4])
    }

    /// Return addresses into the copy stand where those into the original stood.
    private static func isSameStack(
        _ original: [UInt64], _ detoured: [UInt64], _ relocation: PrologueRelocation, _ copy: UInt64
    ) -> Bool {
        if original == detoured { return true }
        return zip(original, detoured).allSatisfy { before, after in
            before == after
                || after &- copy < 200 && relocation.original(ofCopyOffset: Int(after &- copy)) == before
        }
    }

    /// A refusal is looked at, too: the generator knows what it made.
    private static func isRightToRefuse(
        _ refusal: PrologueRefusal, _ program: RelocationProgram, minimum: Int
    ) -> Bool {
        switch refusal {
        case .alreadyHooked: program.starts[0].template == .earlyEnd
        case .endsEarly: program.starts.contains { $0.template == .earlyEnd && $0.offset + 5 < minimum }
        // Only loops lead back.
        case .branchIntoReplacedBytes: program.starts.contains { $0.template == .loop && $0.offset > 0 }
        default: false
        }
    }
}

/// Short names for counting refusals.
enum RelocationReason {
    static func of(_ refusal: PrologueRefusal) -> String {
        switch refusal {
        case .alreadyHooked: "already hooked"
        case .endsEarly: "ends early"
        case .breakpoint: "breakpoint"
        case .undecodable: "undecodable"
        case .truncated: "truncated"
        case .tellsItsAddress: "tells its address"
        case .unsupportedBranch: "unsupported branch"
        case .truncatedOperand: "truncated operand"
        case .usesReplacedBytes: "uses replaced bytes"
        case .branchIntoReplacedBytes: "branch into replaced bytes"
        case .outOfReach: "out of reach"
        }
    }
}
