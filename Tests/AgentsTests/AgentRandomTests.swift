import Detours
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest

@testable import Agents

/// What a guest does with the calls that it is made to make: its pool, and its agents' threads.
private final class PoolModel {
    enum Purpose { case allocate, start, signal, free }
    struct Away {
        var slot: Int
        var purpose: Purpose
        /// The agent's, by the size of what it allocates.
        var owner: Int
        var base: GuestVirtualAddress?
        var sent: Deadline
        var isGivenUp = false
    }
    struct Block {
        var owner: Int
        /// A thread of the agent's runs in it.
        var hasThread = false
        var isFreed = false
    }

    let run: AgentRun
    var random: SeededGenerator
    var away: [Away] = []
    var blocks: [UInt64: Block] = [:]
    var problems: [String] = []
    private var eventsSeen = 0
    private var nextBlock = 0
    private static let blockSize: UInt64 = 0x4000
    static let blockCount = 64
    /// Given by the allocator, but not there.
    private static let absent: UInt64 = 0xffff_b9ff_0000_0000

    init(_ run: AgentRun, seed: UInt64) {
        self.run = run
        random = SeededGenerator(seed: seed)
    }

    func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &random) < percent }

    private func demand(_ condition: Bool, _ rule: String) { if !condition { problems.append(rule) } }

    private func describe(_ call: GuestCall) -> (Purpose, Int, GuestVirtualAddress?)? {
        var values: [UInt64] = []
        for argument in call.arguments { if case .value(let value) = argument { values.append(value) } }
        if call.function == run.functions.allocate { return (.allocate, (Int(values[1]) - AgentRun.size) / 0x10, nil) }
        let place = values[0] - (call.function == run.functions.setEvent ? 0x90 : 0)
        guard let block = blocks[place], !block.isFreed else { return nil }
        let purpose: Purpose =
            call.function == run.functions.free ? .free : call.function == run.functions.setEvent ? .signal : .start
        return (purpose, block.owner, GuestVirtualAddress(place))
    }

    /// A thread comes by; it may be impossible to send it off.
    func offer() throws {
        let place: BorrowingPlace = chance(50) ? .systemCall : .powerCall
        if chance(10) {
            try run.standing {
                if try run.manager.nextCall(from: place) != nil { run.manager.couldNotSend() }
            }
            return
        }
        guard let (slot, call) = try run.offer(place) else { return }
        noteEvents()
        guard let (purpose, owner, base) = describe(call) else { return problems.append("a call about what is freed") }
        demand(away.allSatisfy(\.isGivenUp), "two calls at once")
        if let base {
            if purpose == .free {
                demand(blocks[base.rawValue]?.hasThread == false, "freed with a thread in it")
                demand(run.programs[owner].leadsTo != base, "freed with code that leads there")
                demand(!isInUse(base), "freed during a call that needs it")
            }
            if purpose == .start { demand(blocks[base.rawValue]?.hasThread == false, "started twice") }
        }
        away.append(Away(slot: slot, purpose: purpose, owner: owner, base: base, sent: run.time))
    }

    private func isInUse(_ base: GuestVirtualAddress) -> Bool {
        away.contains { $0.base == base && ($0.purpose == .start || $0.purpose == .signal) }
    }

    /// Calls whose ends nobody waits for any more.
    func noteEvents() {
        for event in run.events[eventsSeen...] {
            switch event {
            case .failed(let name, _), .neutralised(let name, _, _):
                for index in away.indices where run.programs[away[index].owner].name == name {
                    away[index].isGivenUp = true
                }
            default: break
            }
        }
        eventsSeen = run.events.count
        // One that gives back what had come too late is given up without a word.
        for index in away.indices where away[index].purpose == .free && run.time - away[index].sent >= .seconds(5) {
            away[index].isGivenUp = true
        }
    }

    /// A thread that was away is back.
    func back() throws {
        guard let index = away.indices.randomElement(using: &random) else { return }
        let call = away.remove(at: index)
        var result: UInt64 = 0
        switch call.purpose {
        case .allocate:
            result = chance(70) ? allocate(call.owner) : [0, 0x1230, Self.absent].randomElement(using: &random)!
            if result == Self.absent {
                if blocks[result] == nil { blocks[result] = Block(owner: call.owner) } else { result = 0 }
            }
        case .start:
            if chance(75), let base = call.base {
                blocks[base.rawValue]?.hasThread = true
                if run.word(base, .stage) == 0 { run.set(base, .stage, 1) }
            } else {
                result = 0xc000_0017
            }
        case .signal: break
        case .free: if let base = call.base { free(base) }
        }
        try run.back(call.slot, result)
        noteEvents()
    }

    private func allocate(_ owner: Int) -> UInt64 {
        for _ in 0..<Self.blockCount {
            nextBlock = (nextBlock + 1) % Self.blockCount
            let base = FakeGuest.pool + UInt64(nextBlock) * Self.blockSize
            if let block = blocks[base], !block.isFreed { continue }
            blocks[base] = Block(owner: owner)
            run.guest.kernel.write([UInt8](repeating: 0, count: 0x100), at: base)
            return base
        }
        return 0
    }

    private func free(_ base: GuestVirtualAddress) {
        demand(
            blocks[base.rawValue]?.isFreed == false, "freed twice: \(base) \(String(describing: blocks[base.rawValue]))"
        )
        if base.rawValue == Self.absent {
            blocks[base.rawValue] = nil
            return
        }
        blocks[base.rawValue]?.isFreed = true
        // Somebody else's from now on.
        run.guest.kernel.write([UInt8](repeating: 0xcc, count: 0x100), at: base.rawValue)
    }

    /// Every thread of an agent's goes a step on.
    func runThreads() {
        for (place, block) in blocks where block.hasThread && chance(60) {
            let base = GuestVirtualAddress(place)
            let program = run.programs[block.owner]
            let wish = run.word(base, .stopWanted)
            let mayLeave = run.word(base, .mayLeave) == 1
            if mayLeave { demand(program.leadsTo != base, "may leave while code leads there") }
            if wish == 0 {
                // No sign of life for too long.
                if mayLeave, chance(3), !isInUse(base) { leaveByItself(base) }
                continue
            }
            run.set(base, .stage, 2)
            guard mayLeave, run.word(base, .inside) == 0 else { continue }
            if wish == 2 {
                demand(!isInUse(base), "gone by itself during a call that needs it")
                leaveByItself(base)
            } else {
                run.set(base, .stage, 3)
                blocks[place]?.hasThread = false
            }
        }
        // Somebody comes by the gate, or leaves.
        for (place, block) in blocks where block.hasThread {
            let base = GuestVirtualAddress(place)
            let isLed = run.programs[block.owner].leadsTo == base
            run.set(base, .inside, isLed && chance(30) ? 1 : 0)
        }
        for (place, block) in blocks where !block.hasThread && !block.isFreed && run.word(.init(place), .stage) == 3 {
            run.set(.init(place), .inside, 0)
        }
    }

    private func leaveByItself(_ base: GuestVirtualAddress) {
        blocks[base.rawValue]?.hasThread = false
        free(base)
    }

    /// What was given back is not touched any more.
    func check() {
        for (place, block) in blocks where block.isFreed {
            demand(run.bytes(.init(place), 0x100).allSatisfy { $0 == 0xcc }, "what was given back was written to")
        }
        let starts = run.words.filter { $0.hasPrefix("deployed") }.count
        demand(starts >= run.manager.deployed.count, "deployed without a word")
        demand(run.machine.violations.isEmpty, "violations: \(run.machine.violations)")
    }
}

@Suite("The agents' queue under random orders of everything") struct AgentRandomTests {
    private static func step(_ model: PoolModel) throws {
        let run = model.run
        let name = run.programs.randomElement(using: &model.random)!.name
        // Something may be refused; it is said, and the queue goes on.
        do {
            switch Int.random(in: 0..<100, using: &model.random) {
            case 0..<12: try run.want(name, true)
            case 12..<20: try run.want(name, false)
            case 20..<22: try run.standing { try run.manager.suspend() }
            case 22..<26: run.manager.resume()
            case 26..<27:
                try run.standing {
                    try run.manager.suspend()
                    try run.manager.giveUp(because: "random")
                }
                for index in model.away.indices { model.away[index].isGivenUp = true }
            case 27..<55: try model.offer()
            case 55..<75: try model.back()
            case 75..<88: model.runThreads()
            case 88..<90:
                let program = run.programs.randomElement(using: &model.random)!
                program.refusesAttaching = model.chance(30)
                program.attachesInPart = model.chance(50)
                program.refusesPreparation = model.chance(10)
                program.refusesToTell = model.chance(10)
                program.refusedDetachments = model.chance(20) ? 2 : 0
            default:
                run.pass(.milliseconds([1, 50, 600, 3000].randomElement(using: &model.random)!))
                try run.tick()
            }
        } catch let error as AgentError {
            if case .hypervisor = error { throw error }
        }
        model.noteEvents()
        model.check()
    }

    /// Everything comes to rest: what was sent off is back, and nothing is wanted any more.
    private static func settle(_ model: PoolModel) throws {
        let run = model.run
        for program in run.programs {
            (program.refusedDetachments, program.refusesToTell) = (0, false)
            try run.want(program.name, false)
        }
        for _ in 0..<400 {
            model.runThreads()
            if model.chance(50) { try model.offer() } else { try model.back() }
        }
        for _ in 0..<3 {
            run.pass(.seconds(31))
            try run.tick()
            for _ in 0..<40 {
                try model.back()
                try model.offer()
                model.runThreads()
            }
        }
        run.pass(.seconds(31))
        try run.tick()
    }

    @Test("One call at a time, nothing freed twice, nothing lost unsaid, and rest at the end", arguments: 0..<12)
    func random(seed: UInt64) throws {
        for round in 0..<25 {
            let run = try AgentRun(["one", "two", "three"], vcpus: 1, poolPages: 4 * PoolModel.blockCount)
            let model = PoolModel(run, seed: seed * 1000 + UInt64(round))
            for step in 0..<160 {
                try Self.step(model)
                if let problem = model.problems.first {
                    Issue.record("seed \(seed), round \(round), step \(step): \(problem); \(run.words)")
                    return
                }
            }
            try Self.settle(model)
            model.check()
            let told = Set(
                run.events.compactMap { if case .neutralised(_, let base, _) = $0 { base.rawValue } else { nil } })
            let left = model.blocks.filter { !$0.value.isFreed && !told.contains($0.key) }
            #expect(left.isEmpty, "seed \(seed), round \(round): \(left) of \(run.words)")
            #expect(model.problems == [], "seed \(seed), round \(round)")
            for name in run.manager.names {
                let state = try #require(run.state(name))
                switch state {
                case .absent, .failed, .neutralised: break
                default: Issue.record("seed \(seed), round \(round): \(name) is \(state) at rest")
                }
            }
            #expect(!run.manager.isOutstanding && !run.manager.isBusy && run.programs.allSatisfy { $0.leadsTo == nil })
            #expect(try run.tick() == nil)
            run.guest.ram.unmap()
        }
    }
}
