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
    /// What writes the page tables of a real guest, found by watching them.
    @Suite(.serialized, .needs64Bit)
    struct PageTableWriterTests {
        /// A guest under control, with the places that it writes its page tables at.
        final class Watched {
            let guest: BundledGuestMachine
            let machine: QEMUMachine
            let kernel: WindowsKernel
            let catalog: PageTableWriterCatalog
            let effects: GuestEffects
            let symbols: [String: UInt64]

            init(_ configuration: GuestConfiguration) throws {
                guest = try BundledGuestMachine.ready(configuration)
                // What is pageable is brought in by being read.
                try guest.console.run("check")
                var symbols: [String: UInt64] = [:]
                for line in try guest.console.run("symbols").lines {
                    let words = line.split(separator: " ")
                    guard words.count == 2 else { continue }
                    symbols[String(words[0])] = UInt64(words[1].dropFirst(2), radix: 16)
                }
                self.symbols = symbols
                machine = try QEMUMachine(
                    QEMUTarget(guest.operatorSocket), guardianCommand: [VigilProcess.path, "guardian"])
                kernel = try KernelLocator(physical: machine.memory).locate(among: machine.processorTables())
                catalog = try PageTableWriterCatalog(of: kernel.image, in: kernel.memory)
                effects = GuestEffects(machine: machine)
                try effects.takeControl {}
            }

            /// Waits for a command's answer. Whatever is asked of QEMU meanwhile is a sign of life for the guardian.
            func reply(to number: Int) throws -> GuestConsole.Reply {
                let deadline = ContinuousClock.now + .seconds(60)
                while ContinuousClock.now < deadline {
                    if let reply = try guest.console.replyIfThere(to: number) { return reply }
                    _ = try machine.nextEvent(until: .now + .milliseconds(20))
                    _ = try machine.runState()
                }
                return try guest.console.reply(to: number, within: .zero)
            }

            @discardableResult
            func run(_ command: String) throws -> GuestConsole.Reply { try reply(to: try guest.console.start(command)) }

            /// The candidate in a function's first bytes.
            func candidates(in function: String) throws -> [PageTableWriter] {
                let address = try #require(symbols[function])
                return catalog.candidates.values.filter { $0.address.rawValue &- address < 0x60 }
            }

            /// Whether an instruction is in a function.
            func isIn(_ function: String, _ writer: PageTableWriter) throws -> Bool {
                try candidates(in: function).contains(writer)
            }

            func search() -> PageTableWriterSearch {
                PageTableWriterSearch(kernel.memory.space, in: machine.memory, catalog: catalog)
            }

            /// Watches what has been found to change, until a condition is met, and leaves the guest as it was.
            func watch(
                _ search: inout PageTableWriterSearch, starting command: String? = nil,
                until isDone: (PageTableWriterSearch) -> Bool
            ) throws {
                let sites = search.sites(machine.breakpointCapacity)
                #expect(sites.contains { $0.isSelfMap } && sites.contains { !$0.isSelfMap })
                try effects.withPaused { () throws(HypervisorError) in
                    for site in sites { try effects.insert(site.breakpoint) }
                }
                let call = try command.map { try guest.console.start($0) }
                let deadline = ContinuousClock.now + .seconds(60)
                while !isDone(search) {
                    guard case .stop(let stop)? = try machine.nextEvent(until: deadline),
                        case .watchpoint(let address) = stop.reason
                    else {
                        Issue.record("no stop: \(try guest.describe())")
                        break
                    }
                    effects.noteStop()
                    let registers = try machine.registers(of: stop.vcpu)
                    // Where the watch is, or the byte of it that was accessed.
                    if let site = sites.first(where: { address.rawValue &- $0.address.rawValue < 8 }) {
                        search.confirm(registers, at: site)
                    }
                    try effects.resumeFromStop()
                }
                _ = try effects.withPausedUnlessStopped { () throws(HypervisorError) in
                    try effects.removeAllSites()
                }
                if !effects.sites.isEmpty {
                    // A breakpoint was faster.
                    _ = try machine.nextEvent(until: deadline)
                    effects.noteStop()
                    try effects.removeAllSites()
                    try effects.resumeFromStop()
                }
                if let call { #expect(try reply(to: call).result.hasPrefix("ok")) }
            }
        }

        @Test(
            "The functions that write page tables are among the candidates, and are what is seen writing them",
            arguments: DiscoveryTests.variants)
        func finds(_ optimisation: GuestConfiguration.Optimisation, _ reentry: GuestConfiguration.Reentry) throws {
            var configuration = GuestConfiguration.tested
            configuration.optimisation = optimisation
            configuration.reentry = reentry
            let watched = try Watched(configuration)
            #expect(watched.catalog.missingBytes == 0)
            let kinds: [(String, PageTableWriter.Kind)] = [
                ("MiWritePte", .move), ("MiExchangePte", .exchange), ("MiChangePte", .compareExchange),
            ]
            for (function, kind) in kinds {
                #expect(try watched.candidates(in: function).contains { $0.kind == kind }, "\(function)")
            }

            // A page of code that moves: its entry changes by CMPXCHG, and by nothing else.
            var search = watched.search()
            try watched.run("move KiServiceTable")
            #expect(search.observe() >= 1)
            try watched.watch(&search, starting: "move KiServiceTable") { !$0.confirmed.isEmpty }
            let changed = try #require(search.confirmed.values.first)
            #expect(changed.kind == .compareExchange && search.confirmed.count == 1)
            #expect(try watched.isIn("MiChangePte", changed))

            // A page that comes and goes as fast as it can: a store, and an exchange.
            search = watched.search()
            _ = try watched.guest.console.start("remap 4000000000")
            let deadline = ContinuousClock.now + .seconds(60)
            while search.observe() == 0, ContinuousClock.now < deadline {}
            try watched.watch(&search) { $0.confirmed.count >= 2 }
            #expect(Set(search.confirmed.values.map(\.kind)) == [.move, .exchange])
            for writer in search.confirmed.values {
                #expect(try watched.isIn(writer.kind == .move ? "MiWritePte" : "MiExchangePte", writer))
            }
            #expect(try watched.run("check").result.hasPrefix("ok clean"))
            try watched.effects.giveUpControl()
        }
    }
}
