import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import X86

@testable import QEMUHypervisor

@Suite("What the guardian is told") struct GuardianMessageTests {
    static let location = HandlerLocation(
        entry: GuestVirtualAddress(0xffff_f806_4a20_4000), address: GuestVirtualAddress(0xffff_f806_4a20_3e00),
        physical: GuestPhysicalAddress(0x12_3e00), length: 480, waitOffset: 440)
    static let patch = CodePatch(
        places: [
            .init(physical: GuestPhysicalAddress(0x12_4ffd), original: [1, 2, 3], patch: [0xe9, 5, 6]),
            .init(physical: GuestPhysicalAddress(0x77_7000), original: [4, 5, 6], patch: [7, 8, 0x90]),
        ],
        handler: GuestVirtualAddress(0xffff_f806_4a20_3c00), handlerPhysical: GuestPhysicalAddress(0x12_3c00),
        handlerLength: 12,
        counterparts: [
            .init(offset: 0, address: location.entry), .init(offset: 1, address: location.entry),
            .init(offset: 7, address: location.entry + 6),
        ])
    static let sites: [BreakpointSite] = [
        .execution(GuestVirtualAddress(0xffff_f806_4a20_4000)), .execution(GuestVirtualAddress(0)),
        .access(GuestVirtualAddress(.max), length: 8), .access(GuestVirtualAddress(0x10), length: 1),
    ]

    static let place = CodePatch.Place(
        physical: GuestPhysicalAddress(0x55_5ffe), original: [0x0f, 0x01, 0xd3, 4, 5], patch: [0xcd, 0x20, 0x90, 6, 7])
    static let block = PoolBlock(
        address: GuestVirtualAddress(0xffff_b900_0000_0010), size: 976, tag: 0x6c67_6956,
        free: GuestVirtualAddress(0xffff_f806_4a21_0000))
    static let trace = AgentTrace(
        header: GuestPhysicalAddress(0x99_9000), magic: 0x3174_6e67_4167_6956, mayLeaveOffset: 0x74,
        stopWantedOffset: 0x70, stageOffset: 0x78, leaveByItself: 2, leaving: 3, left: 3,
        gate: 0xffff_b900_0000_0140..<0xffff_b900_0000_0160, block: block)
    static var vectors: VectorRegisters {
        var vectors = VectorRegisters()
        for (index, path) in VectorRegisters.all.enumerated() {
            vectors[keyPath: path] = SIMD2(UInt64(index) << 60 | 1, .max - UInt64(index))
        }
        vectors.mxcsr = 0x1fa0
        return vectors
    }

    static var messages: [GuardianMessage] {
        var generator = SeededGenerator(seed: 11)
        let caller = HeldCaller(slot: 7, registers: DescriptionSample.random(&generator))
        let delay = HeldCaller.Delay(entry: location.entry, arrivalRSP: .max - 7, vcpu: VCPU(63))
        let owing = [OwedBlock.result(block), .unlessSuccessful(block), .unlessCalled(block)].map { owed in
            var owing = delay
            owing.owed = owed
            return GuardianMessage.hold(HeldCaller(slot: 5, registers: caller.registers, delay: owing))
        }
        var entrance = place
        entrance.entrance = GuestVirtualAddress(.max - 3)
        var gateless = trace
        gateless.gate = 0..<0
        let restored = CodePatch.Place(physical: place.physical, original: place.original, patch: [])
        var large = place
        (large.original, large.patch) = ([UInt8](repeating: 1, count: 480), [UInt8](repeating: 2, count: 480))
        return [
            .beat, .pause, .resume, .farewell, .handler(nil), .handler(location), .hold(caller), .release(slot: 0),
            .release(slot: 7), .patch(patch), .patch(nil), .sentOff(slot: 63),
            .replace(place), .replace(restored), .replace(large), .replace(entrance),
            .agent(0, nil), .agent(3, nil), .agent(3, trace), .agent(0, gateless),
            .hold(HeldCaller(slot: 1, registers: caller.registers, vectors: vectors)),
            .hold(HeldCaller(slot: 2, registers: caller.registers, delay: delay)),
            .hold(HeldCaller(slot: 63, registers: caller.registers, delay: delay, vectors: vectors)),
        ] + owing + sites.map { .insert($0) } + sites.map { .remove($0) }
    }

    @Test("Every message arrives as it was sent, and fits into a datagram")
    func roundTrip() {
        for message in Self.messages {
            let bytes = message.bytes
            #expect(GuardianMessage(bytes: bytes) == message)
            #expect(bytes.count <= GuardianMessage.maximumLength)
        }
    }

    @Test("A message cut short is none, or another that is whole, and never a trap")
    func truncated() {
        for message in Self.messages {
            let bytes = message.bytes
            for length in 0..<bytes.count { #expect(GuardianMessage(bytes: Array(bytes.prefix(length))) != message) }
        }
        #expect(GuardianMessage(bytes: []) == nil)
        let hold = Self.messages[6].bytes
        #expect(GuardianMessage(bytes: hold.dropLast()) == nil && GuardianMessage(bytes: hold + [0]) == nil)
        #expect(GuardianMessage(bytes: GuardianMessage.insert(Self.sites[0]).bytes.dropLast()) == nil)
    }

    @Test("Random bytes, and known kinds with random contents, never trap")
    func random() {
        var generator = SeededGenerator(seed: 13)
        var understood = 0
        for _ in 0..<20_000 {
            var bytes = (0..<Int.random(in: 0...300, using: &generator)).map { _ in
                UInt8.random(in: 0...255, using: &generator)
            }
            if bytes.count >= 8, Bool.random(using: &generator) {
                bytes.replaceSubrange(0..<8, with: [.random(in: 0...16, using: &generator), 0, 0, 0, 0, 0, 0, 0])
            }
            guard let message = GuardianMessage(bytes: bytes) else { continue }
            understood += 1
            var state = GuardedState()
            state.apply(message)
            #expect(state.sites.count + state.held.count + state.agents.count + state.replaced.count <= 1)
        }
        #expect(understood > 1000)
    }

    @Test("The guardian is told of what it may have to take back, and of nothing else")
    func effects() {
        let site = Self.sites[0]
        let caller = HeldCaller(slot: 1, registers: Registers())
        let told: [(Effect, GuardianMessage?)] = [
            (.pause, .pause), (.resume, .resume), (.step(VCPU(0)), .pause), (.insert(site), .insert(site)),
            (.remove(site), .remove(site)), (.handler(Self.location), .handler(Self.location)),
            (.handler(nil), .handler(nil)), (.patch(Self.patch), .patch(Self.patch)), (.patch(nil), .patch(nil)),
            (.replace(Self.place), .replace(Self.place)), (.agent(2, Self.trace), .agent(2, Self.trace)),
            (.agent(2, nil), .agent(2, nil)), (.sentOff(slot: 4), .sentOff(slot: 4)),
            (.hold(caller), .hold(caller)), (.release(slot: 1), .release(slot: 1)), (.setRegisters(VCPU(0)), nil),
            (.writeCode(GuestPhysicalAddress(0), count: 1), nil), (.writeData(GuestPhysicalAddress(0), count: 1), nil),
        ]
        for (effect, message) in told { #expect(GuardianMessage(effect) == message) }
    }

    @Test("An agent message with nonsense in it is none")
    func badAgents() {
        let good = GuardianMessage.agent(1, Self.trace).bytes
        func with(_ word: Int, _ value: UInt64) -> [UInt8] {
            var bytes = good
            bytes.replaceSubrange(8 * word..<8 * word + 8, with: withUnsafeBytes(of: value) { Array($0) })
            return bytes
        }
        #expect(GuardianMessage(bytes: good) != nil)
        for (word, value) in [
            (1, UInt64.max), (4, .max), (5, .max), (6, .max), (7, 1 << 32), (8, 1 << 32), (9, 1 << 32), (10, .max),
            (13, .max), (14, 1 << 32),
        ] {
            #expect(GuardianMessage(bytes: with(word, value)) == nil, "word \(word)")
        }
        let replaced = GuardianMessage.replace(Self.place).bytes
        #expect(GuardianMessage(bytes: replaced + [0]) == nil && GuardianMessage(bytes: replaced.dropLast()) == nil)
    }

    @Test("Replaced code is known until it is as it was, agents until they are gone, each by itself")
    func agents() {
        var state = GuardedState()
        let other = CodePatch.Place(physical: GuestPhysicalAddress(0x10), original: [1], patch: [2])
        for message: GuardianMessage in [
            .replace(Self.place), .replace(other), .agent(0, Self.trace), .agent(1, Self.trace), .agent(0, nil),
            .replace(CodePatch.Place(physical: other.physical, original: [1], patch: [])), .agent(7, nil),
        ] { state.apply(message) }
        var expected = GuardedState()
        expected.replaced = [Self.place.physical: Self.place]
        expected.agents = [1: Self.trace]
        #expect(state == expected)
        // Replaced again by other bytes: the last ones count.
        var again = Self.place
        again.patch = [1, 2, 3, 4, 5]
        state.apply(.replace(again))
        #expect(state.replaced == [again.physical: again])
    }

    @Test("What is in force is the sum of what was said")
    func state() {
        var state = GuardedState()
        var registers = Registers()
        registers.rsp = 0x1000
        let caller = HeldCaller(slot: 3, registers: registers)
        for message: GuardianMessage in [
            .pause, .insert(Self.sites[0]), .insert(Self.sites[2]), .insert(Self.sites[0]), .handler(Self.location),
            .hold(caller), .beat, .patch(Self.patch),
        ] { state.apply(message) }
        var expected = GuardedState()
        expected.sites = [Self.sites[0], Self.sites[2]]
        expected.handler = Self.location
        expected.patch = Self.patch
        expected.held = [3: caller]
        expected.stopIsOurs = true
        #expect(state == expected)
        for message: GuardianMessage in [
            .release(slot: 2), .remove(Self.sites[1]), .remove(Self.sites[2]), .resume, .farewell,
        ] { state.apply(message) }
        expected.sites = [Self.sites[0]]
        expected.stopIsOurs = false
        #expect(state == expected)
        for message: GuardianMessage in [.release(slot: 3), .handler(nil), .patch(nil), .remove(Self.sites[0])] {
            state.apply(message)
        }
        #expect(state == GuardedState())
    }
}
