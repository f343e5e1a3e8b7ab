import BundledGuest
import Foundation
import Testing

extension Integration {
    /// The right function is found in whatever shape the compiler gave the kernel.
    @Suite(.serialized)
    struct DiscoveryTests {
        static let variants = GuestConfiguration.Optimisation.allCases.flatMap { optimisation in
            GuestConfiguration.Reentry.allCases.map { (optimisation, $0) }
        }

        @Test(
            "inspect finds the kernel, the function and its re-entry, as the guest itself knows them",
            arguments: variants)
        func finds(_ optimisation: GuestConfiguration.Optimisation, _ reentry: GuestConfiguration.Reentry) throws {
            var configuration = GuestConfiguration.tested
            configuration.optimisation = optimisation
            configuration.reentry = reentry
            let guest = try BundledGuestMachine.ready(configuration)
            let symbols = try guest.console.run("symbols").lines
            func symbol(_ name: String) throws -> String {
                let line = try #require(symbols.first { $0.hasPrefix(name + " ") })
                let digits = try #require(line.split(separator: " ").last).drop { $0 == "0" || $0 == "x" }
                return "0x" + digits
            }
            let result = try VigilProcess.run("inspect", guest.target, "--format", "json")
            #expect(result.status == 0, "\(result.errors)")
            let found = try #require(VigilEvent(result.output))
            #expect(found.name == "inspected")
            #expect(try found.string("kernelBase") == symbol("ImageBase"))
            #expect(try found.string("powerFunction") == symbol("NtSetSystemPowerState"))
            #expect(try found.string("delayFunction") == symbol("KeDelayExecutionThread"))
            #expect(found.int("build") == (GuestConfiguration.is32Bit ? 7601 : 19045))
            #expect(found.string("architecture") == (GuestConfiguration.is32Bit ? "x86" : "x64"))
            #expect(found.strings("foundBy") == ["service-table"])
            #expect(found.string("reentry") == "proved")
            #expect((found.string("handler") == nil) == GuestConfiguration.is32Bit)
            #expect(found.string("bugCheck") == "KeBugCheck2")
            #expect(try found.string("bugCheckAddress") == symbol("KeBugCheck2"))
            #expect(found.strings("bugCheckFoundBy") == ["common-callee"] && found.strings("bugCheckNotes") == [])
        }

        @Test("A privileged user's call is one request, in both shapes of re-entry", arguments: variants)
        func oneRequest(_ optimisation: GuestConfiguration.Optimisation, _ reentry: GuestConfiguration.Reentry) throws {
            var configuration = GuestConfiguration.tested
            configuration.optimisation = optimisation
            configuration.reentry = reentry
            let guest = try BundledGuestMachine.ready(configuration)
            let vigil = try VigilProcess(["attach", guest.target, "--format", "json"])
            _ = try vigil.event("attached")
            try guest.console.run("refuse on")
            try guest.console.run("power user 5 6 0")
            let counts = try guest.console.run("counts")
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            let events = vigil.outputText.split(separator: "\n").compactMap { VigilEvent(String($0)) }
            #expect(events.map(\.name) == ["attached", "transition-requested", "outcome", "detached"])
            let end = try #require(events.last)
            #expect(end.int("entries") == 2 && counts["entries"] == 2)
            #expect(end.int("returns") == 2 && counts["returns"] == 2)
        }

        @Test("Patterns that the user supplies are a second way, and one that leads elsewhere counts, with a warning")
        func patterns() throws {
            let guest = try BundledGuestMachine.ready()
            let found = try #require(
                VigilEvent(try VigilProcess.run("inspect", guest.target, "--format", "json").output))
            // The bytes of the function, and of another one, as the guest has them. The function is in a pageable
            // section: the guest's check of its code pages it in, so that the monitor can read it.
            try guest.console.run("check")
            let lines = try guest.console.run("symbols").lines
            func address(_ name: String) throws -> UInt64 {
                let line = try #require(lines.first { $0.hasPrefix(name + " ") })
                return try #require(UInt64(line.split(separator: " ")[1].dropFirst(2), radix: 16))
            }
            let folder = FileManager.default.temporaryDirectory.appendingPathComponent("vigil-\(UUID().uuidString)")
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            defer { try? FileManager.default.removeItem(at: folder) }

            func file(_ name: String, matching symbol: String) throws -> String {
                let bytes = try Operator(guest).code(at: try address(symbol), count: 24)
                let row = bytes.map { "0x" + String($0, radix: 16) }.joined(separator: ", ")
                let text = """
                    !intro_update_win_function
                    name: NtSetSystemPowerState
                    guest64: \(GuestConfiguration.is32Bit ? "False" : "True")
                    patterns:
                        -
                            !intro_update_win_pattern
                            section_hint: PAGELK
                            min_ver: 7600
                            max_ver: 19045
                            pattern: !code_pattern
                                code:
                                    - [\(row)]
                    """
                let file = folder.appendingPathComponent(name)
                try text.write(to: file, atomically: true, encoding: .utf8)
                return file.path
            }

            let right = try VigilProcess.run(
                "inspect", guest.target, "--format", "json", "--patterns",
                try file("right.yaml", matching: "NtSetSystemPowerState"))
            let confirmed = try #require(VigilEvent(right.output), "\(right.errors)")
            #expect(confirmed.strings("foundBy") == ["service-table", "pattern"])
            #expect(confirmed.string("powerFunction") == found.string("powerFunction"))

            let wrong = try VigilProcess.run(
                "inspect", guest.target, "--patterns", try file("wrong.yaml", matching: "KeBugCheckEx"))
            #expect(wrong.status == 0, "\(wrong.errors)")
            #expect(wrong.output.contains("WARNING: the pattern leads to"), "\(wrong.output)")
        }
    }
}
