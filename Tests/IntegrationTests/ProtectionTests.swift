import BundledGuest
import GuestMemory
import HypervisorInterface
import Introspection
import Protections
import QEMUHypervisor
import Testing
import WindowsGuest

extension Integration {
    /// Attacks of a real guest on itself, seen from outside; and what looks like them.
    @Suite(.serialized)
    struct ProtectionTests {
        /// A guest and its protections, all armed.
        private final class ProtectedMachine {
            let guest: BundledGuestMachine
            let machine: QEMUMachine
            let protections: ProtectionSet

            init(processors: Int = 1, optimisation: GuestConfiguration.Optimisation = .o2) throws {
                var configuration = GuestConfiguration.tested
                configuration.memory = 64
                configuration.optimisation = optimisation
                configuration.extraArguments = ["-smp", String(processors)]
                guest = try .ready(configuration)
                machine = try QEMUMachine(
                    QEMUTarget(String(guest.target.dropFirst("qemu:".count))), guardianCommand: nil)
                let survey = try GuestSurvey(machine, patterns: [])
                protections = ProtectionSet(machine, kernel: survey.kernel, offsets: survey.offsets)
                try protections.arm(Set(ProtectionKind.allCases), processes: ["app.exe"])
                #expect(try protections.check() == [])
            }

            /// Lets the guest do something and returns the address that it says it changed.
            func run(_ command: String, sourceLocation: SourceLocation = #_sourceLocation) throws
                -> GuestVirtualAddress
            {
                let reply = try guest.console.run(command)
                return GuestVirtualAddress(
                    try #require(reply["address"], "\(reply.result)", sourceLocation: sourceLocation))
            }
        }

        /// An attack, and what has to be said of it.
        struct Attack: Sendable, CustomTestStringConvertible {
            var kind: String
            var protection: ProtectionKind
            var what: String
            var testDescription: String { kind }
        }

        /// What the kernel calls itself.
        static let kernel = GuestConfiguration.tested.architecture == .x86PAE ? "ntkrnlpa.exe" : "ntoskrnl.exe"

        static let attacks = [
            Attack(kind: "code", protection: .kernelCode, what: "1 byte of \(kernel)'s .text changed"),
            Attack(
                kind: "translation", protection: .kernelCode,
                what: "a page of \(kernel)'s .text is mapped elsewhere"),
            Attack(kind: "idt", protection: .interruptTables, what: "gate 0x60 of vCPU"),
            Attack(kind: "service", protection: .serviceTables, what: "service 0x26 leads to"),
            Attack(kind: "ntdll", protection: .userCode, what: "5 bytes of app.exe's ntdll.dll (.text) changed"),
            Attack(kind: "region", protection: .userCode, what: "app.exe has 8 KiB of new executable memory"),
        ].filter {
            // Without PAE no page can be told to be executable.
            $0.kind != "region" || GuestConfiguration.tested.architecture != .x86
        }

        static let machines: [(Int, GuestConfiguration.Optimisation)] = [(1, .o2), (2, .o2), (1, .o0), (2, .os)]

        @Test("Each attack is one violation, each near miss is none, while the guest works", arguments: machines)
        func eachAttack(_ processors: Int, _ optimisation: GuestConfiguration.Optimisation) throws {
            let protected = try ProtectedMachine(processors: processors, optimisation: optimisation)
            let protections = protected.protections
            try protected.guest.console.run("load on")
            for attack in Self.attacks {
                _ = try protected.run("near \(attack.kind)")
                #expect(try protections.check() == [], "near \(attack.kind)")
                let address = try protected.run("attack \(attack.kind)")
                let found = try protections.check()
                #expect(found.map(\.protection) == [attack.protection], "\(attack.kind): \(found)")
                #expect(found.first?.what.hasPrefix(attack.what) == true, "\(found)")
                #expect(found.first?.address == address)
                if attack.kind == "idt" { #expect(found.first?.what.contains("vCPU \(processors - 1) ") == true) }
                #expect(try protections.check() == [], "\(attack.kind) is said once")
                _ = try protected.run("attack \(attack.kind) off")
                _ = try protected.run("near \(attack.kind) off")
                #expect(try protections.check() == [], "\(attack.kind) undone")
                // It comes back, and is found in slices too.
                _ = try protected.run("attack \(attack.kind)")
                var slices: [Violation] = []
                for _ in 0..<100 { slices += try protections.check(budget: 1 << 14) }
                #expect(slices.count == 1 && slices.first?.address == address, "\(slices)")
                _ = try protected.run("attack \(attack.kind) off")
                #expect(try protections.check() == [])
            }
            #expect(try protected.guest.console.run("check").result.hasPrefix("ok clean"))
        }

        @Test("Only the protection that is armed speaks", arguments: attacks)
        func alone(_ attack: Attack) throws {
            let protected = try ProtectedMachine()
            let protections = protected.protections
            protections.disarm([attack.protection])
            // The dispatcher shares its page with the function that is attacked.
            if attack.protection == .kernelCode { protections.disarm([.serviceTables]) }
            _ = try protected.run("attack \(attack.kind)")
            // Without service-tables the table is a constant of the kernel's image.
            let expected: [ProtectionKind] = attack.protection == .serviceTables ? [.kernelCode] : []
            #expect(try protections.check().map(\.protection) == expected)
        }

        @Test("Pageable code that goes and comes is no violation, in whatever form it is out")
        func paging() throws {
            let protected = try ProtectedMachine(processors: 2)
            for kind in ["transition", "prototype", "shared"] {
                try protected.guest.console.run("trim \(kind)")
                #expect(try protected.protections.check() == [], "\(kind)")
                try protected.guest.console.run("check")
                #expect(try protected.protections.check() == [], "\(kind), in again")
            }
        }

        @Test("A guest under load is checked again and again without a word", arguments: [1, 2])
        func load(_ processors: Int) throws {
            let protected = try ProtectedMachine(processors: processors)
            try protected.guest.console.run("load on")
            for round in 0..<200 {
                #expect(try protected.protections.check() == [], "round \(round)")
                if round % 20 == 0 { try protected.guest.console.run("trim") }
            }
            try protected.guest.console.run("load off")
        }

        @Test(
            "Over a sleep: nothing of the guest's own doing is a violation, what an attacker did is", arguments: [1, 2])
        func sleep(_ processors: Int) throws {
            let protected = try ProtectedMachine(processors: processors)
            let protections = protected.protections
            let seen = try Operator(path: protected.guest.operatorSocket)
            try protected.guest.console.run("load on")
            for attack in ["", "code", "ntdll"] {
                protections.suspend()
                var address: GuestVirtualAddress?
                if !attack.isEmpty { address = try protected.run("attack \(attack)") }
                let call = try protected.guest.console.start("power kernel 2 4 0")
                while try seen.runState() != .suspended { seen.waitForEvent() }
                #expect(try protections.check() == [])
                try seen.command("system_wakeup")
                #expect(try protected.guest.console.reply(to: call)["status"] == 0)
                #expect(try protections.resume().map(\.address) == (address.map { [$0] } ?? []), "\(attack)")
                if !attack.isEmpty { _ = try protected.run("attack \(attack) off") }
                #expect(try protections.check() == [])
            }
        }

        @Test(
            "The guest's own guard sees those of the attacks that change what it guards",
            arguments: [
                "code", "idt", "service",
            ])
        func guarded(_ kind: String) throws {
            let guest = try BundledGuestMachine.ready()
            try guest.console.run("near \(kind)")
            try guest.console.run("guard on")
            _ = try guest.console.start("attack \(kind)")
            _ = try guest.console.waitForLine(containing: "bugcheck 0x00000109")
        }

        @Test("The pages to watch are the guest's own, and one of them can be asked about alone")
        func pages() throws {
            let protected = try ProtectedMachine()
            let protections = protected.protections
            let pages = protections.watchedPages
            let address = try protected.run("attack translation")
            #expect(pages.contains(address))
            let found = try protections.check(page: address + 0x10)
            #expect(found.count == 1 && found.first?.address == address)
            #expect(try protections.check(page: pages[0] == address ? pages[1] : pages[0]) == [])
        }
    }
}
