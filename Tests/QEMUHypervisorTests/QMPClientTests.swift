import Glibc
import HypervisorInterface
import Testing

@testable import QEMUHypervisor

@Suite("The QMP client") struct QMPClientTests {
    static func client(_ peer: ScriptedPeer, prefix: String = "vigil") -> QMPClient {
        QMPClient(socket: Socket(descriptor: peer.client, peer: "the test"), pulse: Pulse(), idPrefix: prefix)
    }

    @Test("A greeting is taken, capabilities left, and the version read")
    func negotiates() throws {
        let peer = ScriptedPeer { peer in
            peer.send(ScriptedPeer.greeting)
            peer.expectCommand("qmp_capabilities")
        }
        #expect(try Self.client(peer).negotiate(target: "qemu:test") == "7.2.22")
        peer.finish()
        #expect(peer.surprises == [])
    }

    @Test("A socket that accepts and does not greet has another client")
    func noGreeting() throws {
        let peer = ScriptedPeer { _ in }
        #expect(throws: HypervisorError.heldByAnotherClient(target: "qemu:test")) {
            try Self.client(peer).negotiate(target: "qemu:test")
        }
        peer.finish()
    }

    @Test("A socket that closes instead of greeting cannot be connected to, and is not waited for")
    func closesAtOnce() throws {
        let peer = ScriptedPeer { $0.hangUp() }
        peer.finish()
        #expect(throws: HypervisorError.absent(target: "qemu:test", reason: "it closed the connection")) {
            try Self.client(peer).negotiate(target: "qemu:test")
        }
    }

    @Test("An answer is matched by its id, and events between are kept in order")
    func interleaved() throws {
        let peer = ScriptedPeer { peer in
            peer.expectCommand(
                "query-status", returns: #"{"status": "running", "running": true}"#,
                before: """
                    {"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SUSPEND"}\r
                    {"return": {"status": "stale"}, "id": "vigil-77"}\r
                    {"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}\r

                    """)
            peer.send("{\"event\": \"WAKEUP\"}\r\n")
        }
        let client = Self.client(peer)
        #expect(try client.execute("query-status")["status"]?.string == "running")
        peer.finish()
        client.takeInput()
        #expect(client.takeEvent() == QMPEvent(name: "SUSPEND", data: .null))
        #expect(client.takeEvent()?.data["guest"]?.bool == true)
        #expect(client.takeEvent()?.name == "WAKEUP")
        #expect(client.takeEvent() == nil && !client.hasEvents)
    }

    @Test("QEMU's own words are the error of a refused command")
    func refused() throws {
        let peer = ScriptedPeer { peer in
            guard let command = peer.nextCommand() else { return }
            peer.send(
                "{\"id\": \"\(command.id)\", \"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}}\r\n"
            )
        }
        #expect(throws: HypervisorError.commandFailed(command: "chardev-remove", reason: "no such thing")) {
            try Self.client(peer).execute("chardev-remove", ["id": "x"])
        }
        peer.finish()
    }

    @Test("Answers that another client left unread are not taken for ours")
    func otherClient() throws {
        let peer = ScriptedPeer { peer in
            peer.expectCommand(
                "query-status", returns: "{\"mine\": true}",
                before: "{\"return\": {\"mine\": false}, \"id\": \"vigil-1\"}\r\n")
        }
        #expect(try Self.client(peer, prefix: "guardian").execute("query-status")["mine"]?.bool == true)
        peer.finish()
    }

    @Test("Answers that come in pieces, lines that are no JSON and lines of other shapes do no harm")
    func pieces() throws {
        let peer = ScriptedPeer { peer in
            guard let command = peer.nextCommand() else { return }
            peer.send("nonsense\r\n\r\n[1, 2]\r\n{\"unknown\": 1}\r\n\u{0}\r\n{\"retu")
            peer.send("rn\": {\"n\": -5}, \"id\"")
            peer.send(": \"\(command.id)\"}")
            peer.send("\r\n")
        }
        #expect(try Self.client(peer).execute("x")["n"] == .integer(-5))
        peer.finish()
    }

    @Test("The monitor's text is returned as it is; something else is an error")
    func monitor() throws {
        let peer = ScriptedPeer { peer in
            peer.expectCommand("human-monitor-command", returns: "\"a \\\"line\\\"\\r\\nanother\\r\\n\"")
            peer.expectCommand("human-monitor-command", returns: "{}")
        }
        let client = Self.client(peer)
        #expect(try client.monitor("info status") == "a \"line\"\r\nanother\r\n")
        #expect(throws: HypervisorError.self) { try client.monitor("info status") }
        peer.finish()
    }

    @Test("The command and its arguments arrive as they were given")
    func arguments() throws {
        let given: JSONValue = ["a": "quote \" and \\ and é", "b": true, "c": ["d": .array([.integer(1), .null])]]
        let peer = ScriptedPeer { peer in
            guard let command = peer.nextCommand() else { return }
            peer.note("\(command.name) \(command.arguments == given)")
            peer.send("{\"return\": {}, \"id\": \"\(command.id)\"}\r\n")
        }
        _ = try Self.client(peer).execute("chardev-add", given)
        peer.finish()
        #expect(peer.surprises == ["chardev-add true"])
    }

    @Test("A connection that closes before the answer is a machine that ended; its last events are still there")
    func closed() throws {
        let peer = ScriptedPeer { peer in
            _ = peer.nextCommand()
            peer.send("{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\r\n")
            peer.hangUp()
        }
        let client = Self.client(peer)
        let error = GDBStubTests.reason { () throws(HypervisorError) in try client.execute("query-status") }
        guard case .gone = try #require(error) else {
            Issue.record("\(error!)")
            return
        }
        peer.finish()
        #expect(client.takeEvent()?.name == "SHUTDOWN")
    }

    @Test("A descriptor goes along with a command and is the same file at the other end")
    func passesDescriptor() throws {
        let peer = ScriptedPeer { peer in
            let passed = peer.receiveDescriptor()
            var byte: UInt8 = 42
            peer.note("\(write(passed, &byte, 1))")
            close(passed)
            peer.expectCommand("getfd")
        }
        var ends: [Int32] = [-1, -1]
        #expect(pipe(&ends) == 0)
        _ = try Self.client(peer).execute("getfd", ["fdname": "x"], passing: ends[1])
        peer.finish()
        #expect(peer.surprises == ["1"])
        var byte: UInt8 = 0
        #expect(read(ends[0], &byte, 1) == 1 && byte == 42)
        for end in ends { close(end) }
    }

    @Test(
        "JSON values survive encoding and decoding",
        arguments: [
            "null", "true", "false", "0", "-9223372036854775808", "9223372036854775807", "1.5", "\"text\"", "[]", "{}",
            "{\"a\":[1,{\"b\":null}]}",
        ])
    func json(text: String) throws {
        let value = try #require(JSONText.decode(text))
        #expect(try JSONText.encode(value) == value)
    }

    @Test("JSON's kinds are told apart")
    func kinds() {
        #expect(JSONText.decode("1") == .integer(1) && JSONText.decode("true") == .bool(true))
        #expect(JSONText.decode("1.5") == .number(1.5) && JSONText.decode("null") == .null)
        #expect(JSONText.decode("18446744073709551616") == .number(18_446_744_073_709_551_616))
        #expect(JSONText.decode("{\"a\": 1}")?["a"] == .integer(1) && JSONText.decode("[1]")?["a"] == nil)
    }
}
