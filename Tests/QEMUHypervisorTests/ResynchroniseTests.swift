import HypervisorInterface
import Testing

@testable import QEMUHypervisor

@Suite("Beginning a session with a stub") struct ResynchroniseTests {
    static func check(_ script: @escaping @Sendable (ScriptedPeer) -> Void) throws -> ScriptedPeer {
        let peer = ScriptedPeer { peer in
            script(peer)
            peer.expect("Hg7", reply: "OK")
            peer.expect("Hg8", reply: "E22")
        }
        let stub = GDBStubTests.stub(peer)
        try stub.resynchronise()
        #expect(stub.isStanding)
        try stub.selectThread(7)
        #expect(throws: HypervisorError.self) { try stub.selectThread(8) }
        peer.finish()
        #expect(peer.surprises == [])
        return peer
    }

    @Test("A stub with nothing on its way is asked two questions")
    func plain() throws {
        let peer = try Self.check(GDBStubTests.synchronise)
        #expect(peer.received.count == 4)
    }

    @Test(
        "A dead client's answers and stop replies before ours are discarded",
        arguments: [
            ["T02thread:01;"], ["OK", "OK", "0011223344556677"], ["T05thread:01;", "E22"], ["1"], ["vCont;c;C;s;S"],
            ["T05thread:01;awatch:10;", "T02thread:01;", "OK"],
        ])
    func stale(answers: [String]) throws {
        _ = try Self.check { peer in
            for answer in answers { peer.reply(answer) }
            // QEMU answers every question that it gets, once.
            while let packet = peer.nextPacket() {
                if packet == "vCont?" {
                    peer.reply("vCont;c;C;s;S")
                } else {
                    peer.reply("1")
                    return
                }
            }
        }
    }

    @Test("A question that stopped a running machine, and was swallowed, is asked again")
    func swallowed() throws {
        let peer = try Self.check { peer in
            peer.expect("vCont?", reply: "T02thread:01;")
            GDBStubTests.synchronise(peer)
        }
        #expect(peer.received.prefix(3) == ["vCont?", "vCont?", "qAttached"])
    }

    @Test("A stub that closes instead of answering is a machine that ended")
    func closed() throws {
        let peer = ScriptedPeer { peer in
            _ = peer.nextPacket()
            peer.hangUp()
        }
        let stub = GDBStubTests.stub(peer)
        let error = GDBStubTests.reason { () throws(HypervisorError) in try stub.resynchronise() }
        guard case .gone = try #require(error) else {
            Issue.record("\(error!)")
            return
        }
        peer.finish()
    }

    /// The answer to a question for a part of the description, as QEMU gives it.
    static func part(_ question: String) -> String? {
        let fields = question.split(separator: ":")
        guard question.hasPrefix("qXfer:features:read:"), fields.count == 5 else { return nil }
        let range = fields[4].split(separator: ",").compactMap { Int($0, radix: 16) }
        let content = DescriptionSample.annex(String(fields[3]))
        let part = content.dropFirst(range[0]).prefix(range[1])
        return (range[0] + part.count == content.count ? "l" : "m") + String(decoding: part, as: UTF8.self)
    }

    static func describe(_ peer: ScriptedPeer) {
        while let packet = peer.nextPacket() {
            guard let answer = part(packet) else { return peer.note("\(packet) instead of a description's part") }
            peer.reply(answer)
            if answer.hasPrefix("l") && !packet.contains("target.xml") { return }
        }
    }

    @Test(
        "Opening a running machine reads its description, and owes one stop to be reported", arguments: [true, false])
    func opens(wasRunning: Bool) throws {
        let peer = ScriptedPeer { peer in
            if wasRunning { peer.reply("T02thread:01;") }
            var asked = 0
            while asked == 0, let packet = peer.nextPacket() {
                peer.reply(packet == "vCont?" ? "vCont;c;C;s;S" : "1")
                if packet == "qAttached" { asked = 1 }
            }
            Self.describe(peer)
        }
        let stub = GDBStubTests.stub(peer)
        try stub.open(wasRunning: wasRunning)
        #expect(stub.stopsToBeReported == (wasRunning ? 1 : 0))
        #expect(try stub.description() == DescriptionSample.description())
        peer.finish()
        #expect(peer.surprises == [])
    }

    @Test("A stub without a description is an error")
    func noDescription() throws {
        let peer = ScriptedPeer { peer in
            GDBStubTests.synchronise(peer)
            peer.expect("qXfer:features:read:target.xml:0,ffb", reply: "")
        }
        let stub = GDBStubTests.stub(peer)
        #expect(throws: HypervisorError.self) { try stub.open(wasRunning: false) }
        peer.finish()
    }
}
