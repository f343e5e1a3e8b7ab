import BundledGuest
import Foundation
import Testing

@testable import QEMUHypervisor

extension Integration {
    /// A guest that crashes while there is an agent in it, and no device that would tell of it.
    @Suite(.serialized, .needs64Bit)
    struct CrashTests {
        /// Bytes that lie together in the guest's RAM.
        private struct Part {
            var start: Int
            var count: Int

            func isZero(in memory: [UInt8]) -> Bool { memory[start..<start + count].allSatisfy { $0 == 0 } }
        }

        /// Where the block of an agent lies, page by page.
        private func parts(_ deployed: VigilEvent, _ seen: Operator) throws -> [Part] {
            let text = try #require(deployed.string("address"))
            var address = try #require(UInt64(text.dropFirst(2), radix: 16))
            let end = address + UInt64(try #require(deployed.int("bytes")))
            var parts: [Part] = []
            while address < end {
                let next = min(end, (address | 0xfff) + 1)
                let answer = try seen.qmp.monitor("gva2gpa 0x\(String(address, radix: 16))")
                let digits = try #require(answer.split(separator: " ").last?.dropFirst(2))
                let physical = try #require(Int(digits.trimmingCharacters(in: .whitespacesAndNewlines), radix: 16))
                parts.append(Part(start: physical, count: Int(next - address)))
                address = next
            }
            return parts
        }

        @Test(
            "However the guest crashes, the agent's memory is zeroes: through KeBugCheckEx or past it",
            arguments: [("crash", "e2"), ("crash plain", "e2"), ("crash irql", "0a"), ("crash pool", "c2")], [1, 2])
        func crashes(_ crash: (command: String, code: String), _ processors: Int) throws {
            let guest = try AgentTests.guest(processors)
            try guest.console.run("busy on")
            let seen = try Operator(path: guest.operatorSocket)
            let vigil = try VigilProcess(["attach", guest.target, "--agents", "heartbeat", "--format", "json"])
            let parts = try parts(try vigil.event("agent-deployed"), seen)
            let before = try seen.memory()
            #expect(parts.contains { !$0.isZero(in: before) })
            _ = try guest.console.start(crash.command)
            #expect(try vigil.event("agent-withdrawn").string("how") == "zeroed")
            _ = try guest.console.waitForLine(containing: "bugcheck 0x000000\(crash.code)")
            // While other vCPUs may still run into the agent's code there are instructions to halt, for a moment.
            let deadline = ContinuousClock.now + .seconds(10)
            var after = try seen.memory()
            while !parts.allSatisfy({ $0.isZero(in: after) }), ContinuousClock.now < deadline {
                after = try seen.memory()
            }
            #expect(parts.allSatisfy { $0.isZero(in: after) })
            #expect(Data(after).range(of: Data("VigAgnt1".utf8)) == nil)
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
        }
    }
}
