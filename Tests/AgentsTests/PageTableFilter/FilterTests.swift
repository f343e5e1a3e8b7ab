import CHandlerHarness
import Foundation
import GuestMemory
import TestSupport
import Testing
import X86

@testable import Agents

@Suite("The page-table filter, executed", .serialized) struct FilterTests {
    static let arithmetic: UInt64 = 0x8d5
    static let decoder = InstructionDecoder(mode: .long64)

    /// An instruction whose end is where interrupts in the harness return to.
    static func writer(_ bytes: [UInt8], end: UInt64 = harness_entry()) throws -> PageTableWriter {
        let instruction = try #require(decoder.decode(bytes, at: end - UInt64(bytes.count)))
        return try #require(PageTableWriter(instruction))
    }

    /// A plain store of RDX to where RSI points: what harness_interrupt has.
    static func store() throws -> PageTableWriter {
        try writer(
            WriterEncoder(operation: .moveRegister, base: 6, source: 2).bytes, end: harness_interrupt_end())
    }

    @Test("It does what each instruction does, to registers, flags and memory", arguments: 1...4 as ClosedRange<UInt64>)
    func differential(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let run = try FilterRun()
        for round in 0..<400 {
            let encoder = WriterEncoder.random(&random)
            let writer = try Self.writer(encoder.bytes)
            var state = (0..<HARNESS_WORDS).map { _ in random.next() }
            state[HARNESS_MXCSR] = 0x1f80
            // Any arithmetic flags, and the direction; what is always set.
            state[HARNESS_FLAGS] = random.next() & (Self.arithmetic | 0x400) | 2
            let target = run.data + Int.random(in: 0..<FilterRun.dataWords, using: &random)
            let address = FilterRun.address(target).rawValue
            Self.point(encoder, at: address, &state)
            let before = (0..<FilterRun.dataWords).map { _ in random.next() }
            func reset() {
                for (index, value) in before.enumerated() { run.data[index] = value }
                // Half of the comparisons succeed.
                if encoder.operation == .compareExchange, round % 2 == 0 { target.pointee = state[0] }
                // Some changes are of bits that do not matter.
                if encoder.operation == .moveRegister, round % 3 == 0 {
                    target.pointee = state[FilterRun.words[Int(encoder.source)]] ^ 0x0070_0000_0000_0f78
                }
            }
            reset()
            let old = target.pointee
            let expected = run.execute(encoder.bytes, state)
            let expectedData = Array(UnsafeBufferPointer(start: run.data, count: FilterRun.dataWords))

            run.load()
            var table = PageTableWriterTable(run.layout)
            run.make(try table.insert(writer))
            try run.watch(target, index: UInt32(round), isImmediate: round % 5 == 0)
            reset()
            let found = run.interrupt(state)
            let label: Comment = "seed \(seed), round \(round): \(encoder)"
            #expect(found == expected, label)
            #expect(Array(UnsafeBufferPointer(start: run.data, count: FilterRun.dataWords)) == expectedData, label)
            #expect(run.inside == 0)

            let new = expectedData[target - run.data]
            let reports = try run.reports()
            if (old ^ new) & PageTableReport.matters == 0 {
                #expect(reports == [], label)
            } else {
                let report = PageTableReport(
                    sequence: 1, end: writer.end, address: GuestVirtualAddress(address), old: old, new: new,
                    watch: UInt32(round), isImmediate: round % 5 == 0)
                #expect(reports == [report], label)
            }
            let counts = try run.counts()
            #expect(counts.writes == 1 && counts.lost == 0 && counts.unknown == 0 && counts.fromUser == 0)
        }
    }

    /// Sets the registers of an instruction's address so that it is a given one.
    static func point(_ encoder: WriterEncoder, at address: UInt64, _ state: inout [UInt64]) {
        let rest = address &- UInt64(bitPattern: Int64(encoder.displacement))
        if let base = encoder.base {
            let scaled = encoder.index.map { state[FilterRun.words[Int($0)]] << UInt64(encoder.shift) } ?? 0
            state[FilterRun.words[Int(base)]] = rest &- scaled
        } else if let index = encoder.index {
            state[FilterRun.words[Int(index)]] = rest >> UInt64(encoder.shift)
        }
    }

    @Test("A full ring overwrites nothing, and counts what is lost; what was read makes room")
    func overflow() throws {
        let run = try FilterRun()
        var table = PageTableWriterTable(run.layout)
        run.make(try table.insert(Self.store()))
        try run.watch(run.data)
        let slots = UInt64(run.layout.ring.slots)
        for value in 1...slots + 10 { harness_interrupt(run.gate, run.data, value << 12) }
        #expect(try run.counts().lost == 10)
        let first = try run.reports()
        #expect(first.map(\.new) == (1...slots).map { $0 << 12 })
        #expect(first.map(\.old) == (0..<slots).map { $0 << 12 })
        #expect(first.map(\.sequence) == Array(1...slots))
        for value in 1...slots { harness_interrupt(run.gate, run.data, value << 12) }
        let second = try run.reports()
        #expect(second.map(\.sequence) == Array(slots + 1...2 * slots))
        #expect(second.first?.old == (slots + 10) << 12)
        #expect(try run.counts().lost == 10 && run.reports().isEmpty)
        #expect(try run.counts().writes == 2 * slots + 10)
    }

    @Test("Several threads at once: every write is performed and reported once, with the entry that it replaced")
    func threads() throws {
        let run = try FilterRun()
        var table = PageTableWriterTable(run.layout)
        run.make(try table.insert(Self.store()))
        try run.watch(run.data)
        let threads = 4
        let each = run.layout.ring.slots / threads
        nonisolated(unsafe) let place = run.data
        DispatchQueue.concurrentPerform(iterations: threads) { thread in
            for round in 1...each { harness_interrupt(run.gate, place, UInt64(thread * each + round) << 12) }
        }
        let reports = try run.reports()
        #expect(run.inside == 0)
        #expect(try run.counts().lost == 0)
        #expect(Set(reports.map(\.new)) == Set((1...UInt64(threads * each)).map { $0 << 12 }))
        #expect(Set(reports.map(\.old)) == Set(reports.map(\.new)).union([0]).subtracting([run.data.pointee]))
    }

    @Test("A reader beside the writers loses nothing but what is counted, in the order of its numbers")
    func concurrentReader() throws {
        let run = try FilterRun()
        var table = PageTableWriterTable(run.layout)
        run.make(try table.insert(Self.store()))
        try run.watch(run.data)
        let threads = 3
        let each = 20_000
        nonisolated(unsafe) let place = run.data
        let done = DispatchSemaphore(value: 0)
        for thread in 0..<threads {
            Thread.detachNewThread {
                for round in 1...each { harness_interrupt(run.gate, place, UInt64(thread * each + round) << 12) }
                done.signal()
            }
        }
        var seen: UInt64 = 0
        var left = threads
        while left > 0 {
            if done.wait(timeout: .now()) == .success { left -= 1 }
            for report in try run.reports() {
                seen += 1
                #expect(report.sequence == seen)
            }
        }
        seen += UInt64(try run.reports().count)
        let counts = try run.counts()
        #expect(counts.writes == UInt64(threads * each))
        #expect(seen + counts.lost == counts.writes)
        #expect(counts.unknown == 0 && run.inside == 0)
    }

    @Test("What it writes lies in no page of its code: a processor would take that for code that changes")
    func pages() throws {
        let image = try FilterRun().image
        let gate = try #require(image.gate)
        #expect(gate.lowerBound % 4096 == 0 && image.data % 4096 == 0)
        #expect(image.data > gate.upperBound && (gate.lowerBound..<image.data).contains(image.threadEntry))
    }

    @Test("An interrupt from an unknown place is counted, and changes nothing")
    func unknown() throws {
        let run = try FilterRun()
        var table = PageTableWriterTable(run.layout)
        run.make(try table.insert(Self.writer([0x48, 0x89, 0x16], end: harness_interrupt_end() + 1)))
        run.data.pointee = 7
        harness_interrupt(run.gate, run.data, 8)
        let counts = try run.counts()
        #expect(run.data.pointee == 7 && counts.unknown == 1 && counts.writes == 0)
        #expect(counts.lastUnknown.rawValue == harness_interrupt_end() && run.inside == 0)
        var random = SeededGenerator(seed: 9)
        var state = (0..<HARNESS_WORDS).map { _ in random.next() }
        state[HARNESS_FLAGS] = Self.arithmetic | 2
        state[HARNESS_MXCSR] = 0x1f80
        // The registers, and the flags but for IF, which is the process's own.
        let result = run.interrupt(state)
        #expect(Array(result[..<HARNESS_FLAGS]) == Array(state[..<HARNESS_FLAGS]))
        #expect(result[HARNESS_FLAGS] & ~0x200 == state[HARNESS_FLAGS])
    }

    @Test("Full tables are found out by the host, and what has been removed is not reported")
    func tables() throws {
        let run = try FilterRun()
        var writers = PageTableWriterTable(run.layout)
        let wanted = try Self.store()
        run.make(try writers.insert(wanted))
        #expect(try writers.insert(wanted).isEmpty)
        // Fill them up to where one finds no slot any more.
        #expect(throws: PageTableFilterError.self) {
            for number in 1...UInt64(run.layout.writers.slots) {
                run.make(try writers.insert(Self.writer([0x48, 0x89, 0x16], end: 0xffff_f800_0000_0000 + number * 7)))
            }
        }
        #expect(writers.count > run.layout.writers.slots / 2)
        var places: [UInt64] = []
        #expect(throws: PageTableFilterError.self) {
            for number in 0...UInt64(run.layout.watches.slots) {
                let address = 0xffff_f68e_0000_0000 + number * 8
                run.make(try run.watches.insert(GuestVirtualAddress(address), index: 1, isImmediate: false))
                places.append(address)
            }
        }
        #expect(places.count > run.layout.watches.slots / 2 && run.watches.count == places.count)
        for address in places.dropFirst() { run.make(run.watches.remove(GuestVirtualAddress(address))) }
        #expect(run.watches.count == 1 && run.watches.remove(GuestVirtualAddress(places[1])).isEmpty)
        // Behind slots that were in use the search goes on.
        try run.watch(run.data, index: 3)
        harness_interrupt(run.gate, run.data, 1 << 12)
        #expect(try run.reports().map(\.watch) == [3])
        try run.watch(run.data, index: 4, isImmediate: true)
        harness_interrupt(run.gate, run.data, 2 << 12)
        #expect(try run.reports().map(\.watch) == [4])
        run.make(run.watches.remove(FilterRun.address(run.data)))
        harness_interrupt(run.gate, run.data, 3 << 12)
        #expect(try run.reports().isEmpty && run.data.pointee == 3 << 12)
        #expect(throws: PageTableFilterError.self) {
            try run.watches.insert(GuestVirtualAddress(0x1004), index: 0, isImmediate: false)
        }
    }

    @Test("A marked change goes by the report point, with its number in RAX; others do not")
    func reportPoint() throws {
        let run = try FilterRun()
        var table = PageTableWriterTable(run.layout)
        run.make(try table.insert(Self.store()))
        // TEST RAX, RAX; JZ over it; the point itself.
        #expect(
            run.image.bytes[(run.layout.reportPoint - 5)...].prefix(6) == [0x48, 0x85, 0xc0, 0x74, 0x01, 0x90])
        try run.watch(run.data, index: 1)
        try run.watch(run.data + 1, index: 2, isImmediate: true)
        harness_interrupt(run.gate, run.data, 1 << 12)
        // INT3 there would end this process: only a marked change may come by.
        run.setByte(0xcc, at: run.layout.reportPoint)
        harness_interrupt(run.gate, run.data, 2 << 12)
        harness_interrupt(run.gate, run.data + 1, 0)
        run.setByte(0x90, at: run.layout.reportPoint)
        harness_interrupt(run.gate, run.data + 1, 3 << 12)
        #expect(try run.reports().map(\.isImmediate) == [false, false, true])
    }

    @Test("Garbage in the ring is bounded and told")
    func hostileRing() throws {
        let run = try FilterRun()
        run.setWord(UInt64(run.layout.ring.slots) + 1, at: run.layout.offset(of: .head))
        #expect(try run.reader.read(from: run.memory).isCorrupt)
        run.setWord(5, at: run.layout.offset(of: .head))
        // Five numbers taken, nothing written yet.
        let batch = try run.reader.read(from: run.memory)
        #expect(batch.reports.isEmpty && batch.acknowledgement == nil && !batch.isCorrupt)
    }

    @Test("The host's description of the shared data is the guest's own, and another one is refused")
    func layout() throws {
        let run = try FilterRun()
        #expect(run.layout.writers.offset >= run.image.bytes.count)
        let tables = [run.layout.writers, run.layout.watches, run.layout.ring].sorted { $0.offset < $1.offset }
        for (first, second) in zip(tables, tables.dropFirst()) {
            #expect(first.offset + first.slots * first.slotSize <= second.offset)
        }
        for offset in [0, 4, 8, 0xc, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x28, 0x2c, 0x30] {
            var bytes = run.image.bytes
            bytes.replaceSubrange(
                run.layout.data + offset..<run.layout.data + offset + 4, with: [0xfd, 0xff, 0xff, 0x7f])
            #expect(throws: PageTableFilterError.self, "offset \(offset)") {
                try PageTableFilterLayout(image: bytes, data: run.image.data, size: run.image.size)
            }
        }
        #expect(throws: PageTableFilterError.self) {
            try PageTableFilterLayout(image: [], data: 0, size: 0)
        }
    }
}
