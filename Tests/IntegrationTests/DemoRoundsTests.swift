import BundledGuest
import Foundation
import Testing

extension Integration {
    /// A guest's life with agents and protections, as `vigil demo --rounds` lives it.
    @Suite(.serialized)
    struct DemoRoundsTests {
        private static let kinds = [
            "hibernation", "hybrid-sleep", "reboot", "refused-request", "shutdown", "sleep",
        ]

        private func run(
            _ arguments: [String]
        ) throws -> (status: Int32, rounds: [VigilEvent], summary: VigilEvent, text: String) {
            let vigil = try VigilProcess(
                ["demo", "--format", "json", "--arch", GuestConfiguration.tested.architecture.rawValue] + arguments)
            let status = vigil.exitStatus()
            let text = vigil.outputText + vigil.errorText
            let events = vigil.outputText.split(separator: "\n").compactMap { VigilEvent(String($0)) }
            let summary = try #require(events.last { $0.name == "demo-rounds-summary" }, "\(text)")
            return (status, events.filter { $0.name == "demo-round" }, summary, text)
        }

        @Test(
            "Each transition with agents and protections armed goes well, and everything is back after it",
            arguments: [(1, 2), (2, 1), (4, 1)])
        func guarded(_ processors: Int, _ count: Int) throws {
            let (status, rounds, summary, text) = try run([
                "--rounds", String(count), "--seed", "7", "--vcpus", String(processors), "--guard", "on",
            ])
            #expect(status == 0, "\(text)")
            for round in 1...count {
                let seen = rounds.filter { $0.int("round") == round }.compactMap { $0.string("transition") }
                #expect(seen.sorted() == Self.kinds, "\(text)")
            }
            #expect(rounds.allSatisfy { $0.members["passed"] as? Bool == true }, "\(text)")
            #expect(rounds.allSatisfy { $0.strings("problems") == [] })
            // Agents leave where there are any.
            #expect(rounds.allSatisfy { ($0.int("awayMicroseconds") != nil) != GuestConfiguration.is32Bit })
            #expect(summary.int("transitions") == 6 * count && summary.int("asExpected") == 6 * count)
            #expect(summary.members["passed"] as? Bool == true && summary.string("bugCheck") == nil)
        }

        @Test(
            "Without the guard the guest ends in a bug check, at a transition that the agents could not survive",
            .needs64Bit)
        func unguarded() throws {
            let (status, rounds, summary, text) = try run(["--rounds", "1", "--seed", "7", "--guard", "off"])
            #expect(status == 0, "\(text)")
            #expect(summary.members["passed"] as? Bool == true, "\(text)")
            #expect(summary.string("bugCheck")?.hasPrefix("bug check 0x") == true, "\(text)")
            let last = try #require(rounds.last)
            #expect(last.string("transition") == summary.string("bugCheckIn"))
            #expect(["hibernation", "hybrid-sleep", "sleep"].contains(summary.string("bugCheckIn")), "\(text)")
        }

        @Test("Senseless options of rounds are usage errors")
        func usage() throws {
            #expect(try VigilProcess.run("demo", "--rounds", "0").status == 64)
            #expect(try VigilProcess.run("demo", "--arch", "arm").status == 64)
            #expect(try VigilProcess.run("demo", "--arch", "x86", "--rounds", "1", "--guard", "off").status == 64)
            #expect(try VigilProcess.run("demo", "--rounds", "1", "--vcpus", "5").status == 64)
            #expect(try VigilProcess.run("demo", "--rounds", "1", "--guard", "perhaps").status == 64)
            for option in [["--seed", "1"], ["--vcpus", "2"], ["--guard", "off"]] {
                #expect(try VigilProcess.run("demo", option[0], option[1]).status == 64)
            }
            #expect(try VigilProcess.run("demo", "--rounds", "1", "--hold", "100").status == 64)
        }
    }
}
