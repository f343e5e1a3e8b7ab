import Testing

@testable import Agents

@Suite("Agents as they are built") struct AgentImageTests {
    @Test("The bundled heartbeat is an agent") func bundled() throws {
        let image = try AgentImage.bundled("heartbeat")
        #expect(image.bytes.count <= image.size && image.gate == nil)
        #expect(image.start >= AgentImage.headerSize && image.start < image.bytes.count)
    }

    @Test("What is no agent is refused, whatever its bytes") func malformed() throws {
        let good = try AgentImage.bundled("heartbeat").bytes
        #expect(throws: AgentError.self) { try AgentImage(bytes: []) }
        #expect(throws: AgentError.self) { try AgentImage(bytes: Array(good.dropLast())) }
        #expect(throws: AgentError.self) { try AgentImage(bytes: [UInt8](repeating: 0, count: 0x400)) }
        // Each word that says where something is, pointed outside.
        for field in [0x0c, 0x10, 0x14, 0x18, 0x20, 0x24] {
            var bad = good
            bad.replaceSubrange(field..<field + 4, with: [0xff, 0xff, 0xff, 0x7f])
            #expect(throws: AgentError.self, "field \(field)") { try AgentImage(bytes: bad) }
        }
        #expect(throws: AgentError.self) { try AgentImage.bundled("no-such-agent") }
    }
}
