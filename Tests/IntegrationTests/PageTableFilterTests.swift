import Agents
import BundledGuest
import Foundation
import GuestMemory
import HypervisorInterface
import Introspection
import QEMUHypervisor
import Testing
import WindowsGuest
import X86

extension Integration {
    /// The page-table filter in a real guest, put there by hand.
    @Suite(.serialized, .needs64Bit)
    struct PageTableFilterTests {
        private typealias Watched = PageTableWriterTests.Watched

        /// The next stop at an address.
        private func arrival(_ watched: Watched, at address: GuestVirtualAddress) throws -> (VCPU, Registers) {
            let deadline = ContinuousClock.now + .seconds(60)
            while case .stop(let stop)? = try watched.machine.nextEvent(until: deadline) {
                watched.effects.noteStop()
                let registers = try watched.machine.registers(of: stop.vcpu)
                if registers.rip == address.rawValue { return (stop.vcpu, registers) }
                try watched.effects.resumeFromStop()
            }
            throw HypervisorError.timedOut(waitingFor: "a stop at \(address)")
        }

        /// Memory of the guest's, from its own allocator: a thread that calls NtSetSystemPowerState makes the call
        /// before, and returns from it to where it was.
        private func allocate(_ size: Int, _ watched: Watched) throws -> GuestVirtualAddress {
            let entry = GuestVirtualAddress(try #require(watched.symbols["NtSetSystemPowerState"]))
            let allocator = try watched.kernel.export("ExAllocatePoolWithTag")
            try watched.effects.withPaused { () throws(HypervisorError) in
                try watched.effects.insert(.execution(entry))
            }
            // Warm eject: nothing goes down.
            let call = try watched.guest.console.start("power kernel-direct 7 4 0")
            let (vcpu, before) = try arrival(watched, at: entry)
            var changed = before
            // The home space, and below it the return address, on a stack as a call leaves it.
            changed.rsp = (before.rsp - 0x200) & ~0xf - 8
            (changed.rcx, changed.rdx, changed.r8) = (0, UInt64(size), 0x6c67_6956)
            changed.rip = allocator.rawValue
            let stack = try watched.kernel.memory.translate(GuestVirtualAddress(changed.rsp)).physical
            try watched.effects.writeData(withUnsafeBytes(of: entry.rawValue) { Array($0) }, at: stack)
            try watched.effects.setRegisters(of: vcpu, from: before, to: changed)
            try watched.effects.resumeFromStop()
            let (again, after) = try arrival(watched, at: entry)
            var restored = before
            restored.control = after.control
            try watched.effects.setRegisters(of: again, from: after, to: restored)
            try watched.effects.remove(.execution(entry))
            try watched.effects.resumeFromStop()
            #expect(try watched.reply(to: call)["status"] == 0)
            #expect(after.rax != 0)
            return GuestVirtualAddress(after.rax)
        }

        @Test(
            "Every page-table write goes through the filter, changes of a watched entry are told, and all is undone",
            arguments: [1, 4])
        func filters(_ processors: Int) throws {
            var configuration = GuestConfiguration.tested
            configuration.extraArguments = ["-smp", String(processors)]
            let watched = try Watched(configuration)
            let (machine, effects, console) = (watched.machine, watched.effects, watched.guest.console)
            let kernel = watched.kernel
            let image = try AgentImage.bundled("ptfilter")
            let layout = try PageTableFilterLayout(image: image.bytes, data: image.data, size: image.size)
            let base = try allocate(image.size, watched)
            let agent = AgentMemory(base: base, image: image, memory: kernel.memory, effects: effects)
            func make(_ writes: [PageTableFilterWrite]) throws {
                for write in writes { try agent.writeData(write.bytes, at: base + UInt64(write.offset)) }
            }

            // The agent, its instructions, and a watch on the entry that maps the service table.
            try agent.writeData(image.bytes, at: base)
            var writers: [PageTableWriter] = []
            for name in ["MiWritePte", "MiExchangePte", "MiChangePte"] { writers += try watched.candidates(in: name) }
            var table = PageTableWriterTable(layout)
            for writer in Set(writers) { try make(table.insert(writer)) }
            var watches = PageTableWatchTable(layout)
            let page = GuestVirtualAddress(try #require(watched.symbols["KiServiceTable"])).page
            let aliases = PageTableAliases(kernel.memory.space, in: machine.memory)
            let own = try #require(aliases.selfMapAddress(ofEntryFor: page, level: 1))
            let place = try kernel.memory.translate(own).physical
            let all =
                [own]
                + (aliases.writableMappings(of: [place.page])[place.page] ?? []).map {
                    $0 + (place.rawValue & 0xfff)
                }
            #expect(all.count == 2)
            for address in all { try make(watches.insert(address, index: 7, isImmediate: false)) }

            // The gate, and the instructions.
            let handler = try InterruptGateCheck.handler(
                of: PageTableWriter.vector, on: machine.processorTables(), in: kernel)
            let entry = base + UInt64(try #require(image.gate).lowerBound)
            let gate = try GatePatch(handler: handler, target: entry, in: kernel.memory)
            let patches = try PageTableFilterPatches(gate: gate, writers: Set(writers), in: kernel.memory)
            func change(_ body: () throws -> Void) throws {
                try effects.withPaused { () throws(HypervisorError) in
                    for index in 0..<machine.vcpuCount {
                        #expect(!patches.isBlocking(try machine.registers(of: VCPU(index)).rip))
                    }
                    return Result { try body() }
                }.get()
            }
            try change { for place in try patches.attachment(in: kernel.memory) { try effects.replaceCode(place) } }
            #expect(try watched.run("check").result.hasPrefix("error modified"))
            #expect(throws: PageTableFilterError.self) { try patches.attachment(in: kernel.memory) }

            // A change that matters.
            var reader = PageTableReportReader(layout, at: base)
            let moved = try watched.run("move KiServiceTable")
            let report = try #require(try reader.read(from: kernel.memory).reports.last)
            #expect(report.watch == 7 && all.contains(report.address))
            #expect((report.old ^ report.new) & ~PageTableEntry.addressMask == 0)
            #expect(report.old & PageTableEntry.addressMask == moved["old"])
            #expect(report.new & PageTableEntry.addressMask == moved["new"])
            #expect(try watched.isIn("MiChangePte", #require(writers.first { $0.end == report.end })))

            // Many that do not, with every processor at work.
            let before = try reader.counts(from: kernel.memory)
            try watched.run("load on")
            // Each round tells every processor, which takes milliseconds where the host has fewer.
            let rounds: UInt64 = processors == 1 ? 20000 : 200
            let remaps = try (0..<2).map { _ in try console.start("remap \(rounds)") }
            for remap in remaps { #expect(try watched.reply(to: remap)["rounds"] == rounds) }
            try watched.run("work 20000")
            try watched.run("trim prototype")
            #expect(try watched.run("power user 7 4 0")["status"] == 0)
            try watched.run("load off")
            let counts = try reader.counts(from: kernel.memory)
            #expect(counts.writes >= before.writes + 4 * rounds)
            #expect(counts.unknown == 0 && counts.fromUser == 0 && counts.lost == 0)
            #expect(try reader.read(from: kernel.memory).reports.isEmpty)

            // A change that the guest is stopped for.
            for address in all { try make(watches.insert(address, index: 8, isImmediate: true)) }
            let point = base + UInt64(layout.reportPoint)
            try effects.withPaused { () throws(HypervisorError) in try effects.insert(.execution(point)) }
            let call = try console.start("move KiServiceTable")
            let (_, registers) = try arrival(watched, at: point)
            let batch = try reader.read(from: kernel.memory)
            #expect(batch.reports.map(\.sequence) == [registers.rax] && batch.reports.map(\.watch) == [8])
            #expect(!registers.interruptsEnabled)
            #expect(try agent.inside() >= 1)
            try effects.remove(.execution(point))
            try effects.resumeFromStop()
            #expect(
                try watched.reply(to: call)["new"] == batch.reports.first.map { $0.new & PageTableEntry.addressMask })

            // And out again.
            try change { for place in patches.detachment(in: kernel.memory).places { try effects.restoreCode(place) } }
            #expect(patches.detachment(in: kernel.memory).places.isEmpty)
            #expect(try watched.run("check").result.hasPrefix("ok clean"))
            let last = try reader.counts(from: kernel.memory).writes
            #expect(try watched.run("remap 100")["rounds"] == 100)
            #expect(try reader.counts(from: kernel.memory).writes == last && agent.inside() == 0)
            try effects.giveUpControl()
            try watched.guest.expectNothingLeft()
        }

        @Test("As an agent it tells which watched page went where, and by which instruction", arguments: [1, 2])
        func agent(_ processors: Int) throws {
            var configuration = GuestConfiguration.tested
            configuration.extraArguments = ["-smp", String(processors)]
            let watched = try Watched(configuration)
            let effects = watched.effects
            let filter = try PageTableFilterAgent(of: watched.kernel)
            let base = try allocate(filter.image.size, watched)
            let memory = AgentMemory(
                base: base, image: filter.image, memory: watched.kernel.memory, effects: effects)
            func paused(_ body: () throws -> Void) throws {
                try effects.withPaused { () throws(HypervisorError) in Result { try body() } }.get()
            }
            var bytes = filter.image.bytes
            try filter.prepare(&bytes, at: base)
            try memory.writeData(bytes, at: base)
            // Nothing is known to write page tables: then there is no filter.
            #expect(throws: AgentError.self) { try paused { try filter.attach(memory) } }
            #expect(try watched.run("check").result.hasPrefix("ok clean"))
            #expect(filter.reportPoint == nil && filter.ownPatches.isEmpty)

            for name in ["MiWritePte", "MiExchangePte", "MiChangePte"] {
                filter.writers += try watched.candidates(in: name)
            }
            let pages = try ["KiServiceTable", "MmMapPage"].map {
                GuestVirtualAddress(try #require(watched.symbols[$0])).page
            }
            try filter.watch([pages[0]])
            try paused { try filter.attach(memory) }
            #expect(filter.ownPatches.count == 1 + Set(filter.writers).count && filter.reportPoint != nil)

            func move(_ symbol: String, _ page: GuestVirtualAddress, isWatched: Bool = true) throws {
                let moved = try watched.run("move \(symbol)")
                var changes: [TranslationChange] = []
                for case .translationChanged(let change) in try filter.collect(from: memory) { changes.append(change) }
                guard isWatched else {
                    #expect(changes.isEmpty)
                    return
                }
                let change = try #require(changes.first)
                #expect(changes.count == 1 && change.page == page && change.level == 1)
                #expect(change.old & PageTableEntry.addressMask == moved["old"])
                #expect(change.new & PageTableEntry.addressMask == moved["new"])
                #expect(try watched.isIn("MiChangePte", #require(filter.writers.first { $0.end == change.writer })))
            }
            try move("KiServiceTable", pages[0])
            try move("MmMapPage", pages[1], isWatched: false)
            try filter.watch(Set(pages), immediate: [])
            try move("MmMapPage", pages[1])
            try move("KiServiceTable", pages[0])
            try filter.watch([pages[1]])
            try move("KiServiceTable", pages[0], isWatched: false)
            try move("MmMapPage", pages[1])
            // The code that is patched moves too: the patches are found where they are now.
            let before = filter.ownPatches
            try watched.run("move MiWritePte")
            #expect(try filter.collect(from: memory).isEmpty && filter.ownPatches != before)
            try paused { try filter.detach() }
            try paused { try filter.detach() }
            #expect(try watched.run("check").result.hasPrefix("ok clean"))
            #expect(try memory.inside() == 0)
            try effects.giveUpControl()
            try watched.guest.expectNothingLeft()
        }
    }
}
