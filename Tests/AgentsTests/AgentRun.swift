import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

@testable import Agents

/// An agent's host side that does what a test says.
final class ScriptedProgram: AgentProgram {
    struct Refusal: Error {}

    let name: String
    let image: AgentImage
    let patchesCode: Bool
    let interval = Duration.milliseconds(100)
    /// Where the guest's code leads by this program, if anywhere.
    private(set) var leadsTo: GuestVirtualAddress?
    /// Attaching fails, before or after something was changed.
    var refusesAttaching = false
    var attachesInPart = false
    /// So many detachments fail.
    var refusedDetachments = 0
    var refusesPreparation = false
    var refusesToTell = false
    private(set) var detachments = 0
    private(set) var collections = 0
    private(set) var hasForgotten = false
    var reports: [AgentReport] = []

    init(_ name: String, image: AgentImage, patchesCode: Bool = false) {
        self.name = name
        self.image = image
        self.patchesCode = patchesCode
    }

    func prepare(_ bytes: inout [UInt8], at base: GuestVirtualAddress) throws(AgentError) {
        if refusesPreparation { throw .unsupported("prepared badly") }
        bytes[image.data] = 0xda
    }

    func attach(_ memory: AgentMemory) throws(AgentError) {
        if !refusesAttaching || attachesInPart { leadsTo = memory.base }
        if refusesAttaching { throw .unsupported("not attachable") }
    }

    func detach() throws(AgentError) {
        detachments += 1
        if refusedDetachments > 0 {
            refusedDetachments -= 1
            throw .unsupported("not detachable")
        }
        leadsTo = nil
    }

    func collect(from memory: AgentMemory) throws(AgentError) -> [AgentReport] {
        collections += 1
        if refusesToTell { throw .unsupported("no report") }
        defer { reports = [] }
        return reports
    }

    func forget() {
        hasForgotten = true
        leadsTo = nil
    }
}

/// An agent manager with a fake guest, whose threads, returned values and clock are the test's.
final class AgentRun {
    static let size = 0x2800
    static let fileSize = 0x1200
    static let start = 0x120
    static let gate = 0x140..<0x160
    static let data = 0x1100
    static let pool = GuestVirtualAddress(FakeGuest.pool)

    /// An agent whose code is recognisable, three pages large.
    static func image(gate: Range<Int>? = gate, size: Int = size) throws -> AgentImage {
        var bytes = (0..<fileSize).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ 3) }
        bytes.replaceSubrange(0..<0x100, with: [UInt8](repeating: 0, count: 0x100))
        func put(_ value: Int, _ offset: Int) {
            for index in 0..<4 { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index)) }
        }
        for index in 0..<8 { bytes[index] = UInt8(truncatingIfNeeded: AgentImage.magic >> UInt64(8 * index)) }
        put(1, 0x08)
        put(fileSize, 0x0c)
        put(size, 0x10)
        put(start, 0x14)
        put(gate?.lowerBound ?? 0, 0x18)
        put(gate?.count ?? 0, 0x1c)
        put(data, 0x20)
        put(0x180, 0x24)
        return try AgentImage(bytes: bytes)
    }

    let guest: FakeGuest
    let kernel: WindowsKernel
    let functions: AgentFunctions
    let effects: GuestEffects
    let programs: [ScriptedProgram]
    let manager: AgentManager
    private(set) var events: [AgentEvent] = []
    /// What was reported, in words.
    var words: [String] { events.map(Self.word) }
    private final class Clock { var now = ContinuousClock.now }
    private let clock = Clock()
    private final class Sink { var report: (AgentEvent) -> Void = { _ in } }
    private var lastSlot = 0

    var machine: FakeMachine { guest.machine }

    /// - Parameter gate: of the agents; nil for agents that the guest's code does not lead to.
    init(
        _ names: [String] = ["one"], gate: Range<Int>? = gate, patchesCode: Bool = false, allowed: Bool = true,
        vcpus: Int = 1, poolPages: Int = 64, runningWrites: Bool = true
    ) throws {
        guest = FakeGuest(vcpus: vcpus)
        guest.addPool(pages: poolPages)
        machineDefaults(guest, runningWrites)
        kernel = try guest.locateKernel()
        functions = try AgentFunctions(of: kernel)
        effects = GuestEffects(machine: guest.machine)
        effects.witnesses = [guest.machine.makeWitness()]
        programs = try names.enumerated().map { index, name in
            // Each has a size of its own, by which its allocations are known.
            ScriptedProgram(
                name, image: try Self.image(gate: gate, size: Self.size + 0x10 * index), patchesCode: patchesCode)
        }
        let sink = Sink()
        manager = AgentManager(
            programs, kernel: kernel, functions: functions, effects: effects, allowVisiblePatches: allowed,
            now: { [clock] in clock.now }, report: { sink.report($0) })
        sink.report = { [unowned self] in events.append($0) }
    }

    private static func word(_ event: AgentEvent) -> String {
        switch event {
        case .deployed(let agent, _, _, _, let place): "deployed \(agent) \(place.rawValue)"
        case .withdrawn(let agent, _, .freed(let place)): "withdrawn \(agent) \(place.rawValue)"
        case .withdrawn(let agent, _, .byItself): "withdrawn \(agent) by-itself"
        case .withdrawn(let agent, _, .zeroed): "withdrawn \(agent) zeroed"
        case .neutralised(let agent, _, _): "neutralised \(agent)"
        case .failed(let agent, _): "failed \(agent)"
        case .report(let agent, let report): "report \(agent) \(report)"
        }
    }

    // MARK: Time

    var time: Deadline { clock.now }

    func pass(_ time: Duration) { clock.now += time }

    /// When something is due, counted from now.
    @discardableResult
    func tick() throws -> Duration? { try manager.tick().map { $0 - clock.now } }

    // MARK: Threads

    /// The machine stands for as long as `body` takes.
    func standing<Value>(_ body: () throws -> Value) rethrows -> Value {
        machine.become(.paused)
        defer { machine.become(.running) }
        return try body()
    }

    /// A thread comes by.
    /// - Returns: what it is sent off to do, and what it is recognised by.
    func offer(_ place: BorrowingPlace = .systemCall) throws -> (slot: Int, call: GuestCall)? {
        try standing {
            guard let call = try manager.nextCall(from: place) else { return nil }
            lastSlot += 1
            manager.didSend(slot: lastSlot)
            return (lastSlot, call)
        }
    }

    /// A thread is back.
    func back(_ slot: Int, _ rax: UInt64 = 0) throws {
        try standing {
            var registers = Registers()
            registers.rax = rax
            try manager.returned(slot: slot, registers)
        }
    }

    /// A thread comes by, makes the call that it is to make, and is back.
    @discardableResult
    func call(_ rax: UInt64 = 0, _ place: BorrowingPlace = .systemCall) throws -> GuestCall? {
        guard let (slot, call) = try offer(place) else { return nil }
        try back(slot, rax)
        return call
    }

    // MARK: Agents

    func want(_ name: String = "one", _ isWanted: Bool = true) throws {
        try standing { try manager.want(name, isWanted) }
    }

    func state(_ name: String = "one") -> AgentManager.State? { manager.state(of: name) }

    /// An agent that runs.
    func deploy(_ name: String = "one", at base: GuestVirtualAddress = pool) throws {
        try want(name)
        try call(base.rawValue)
        try call()
        set(base, .stage, 1)
    }

    func word(_ base: GuestVirtualAddress, _ field: AgentMemory.Field) -> UInt32 {
        (try? kernel.memory.load(UInt32.self, at: base + field.rawValue)) ?? .max
    }

    func set(_ base: GuestVirtualAddress, _ field: AgentMemory.Field, _ value: UInt32) {
        guest.kernel.write(value, at: base.rawValue + field.rawValue)
    }

    func bytes(_ base: GuestVirtualAddress, _ count: Int) -> [UInt8] {
        (try? kernel.memory.bytes(at: base, count: UInt64(count), maximum: UInt64(count))) ?? []
    }

    func isThere(_ base: GuestVirtualAddress) -> Bool {
        bytes(base, 8) == withUnsafeBytes(of: AgentImage.magic.littleEndian) { Array($0) }
    }

    /// Its thread has left.
    func leave(_ base: GuestVirtualAddress = pool) { set(base, .stage, 3) }

    /// The guardian's notes: whether an agent was told of, or taken back, by its number.
    var notes: [String] {
        machine.announcements.compactMap {
            guard case .agent(let number, let trace) = $0 else { return nil }
            return "\(number) \(trace == nil ? "gone" : "there")"
        }
    }

    var freeCall: GuestCall { freeCall(Self.pool) }

    func freeCall(_ base: GuestVirtualAddress) -> GuestCall {
        GuestCall(
            functions.free, [.value(base.rawValue), .value(UInt64(AgentManager.poolTag))],
            owed: .unlessCalled(block(base)))
    }

    var startCall: GuestCall {
        GuestCall(
            Self.pool + UInt64(Self.start), [.value(Self.pool.rawValue)], owed: .unlessSuccessful(block(Self.pool)))
    }

    /// What the guardian is told of a block, should it have to be given back.
    func block(_ base: GuestVirtualAddress) -> PoolBlock {
        PoolBlock(address: base, size: Self.size, tag: AgentManager.poolTag, free: functions.free)
    }
}

private func machineDefaults(_ guest: FakeGuest, _ runningWrites: Bool) {
    guest.machine.writesDataWhileRunning = runningWrites
    for index in guest.machine.registers.indices { guest.machine.registers[index].rip = 0x1000 }
}
