import HypervisorInterface
import Testing

@testable import QEMUHypervisor

@Suite("Beginning a session with a stub") struct ResynchroniseTests {
    static func check(
        as client: GDBStub.Client, _ script: @escaping @Sendable (ScriptedPeer) -> Void
    ) throws -> ScriptedPeer {
        let peer = ScriptedPeer { peer in
            script(peer)
            peer.expect("Hg7", reply: "OK")
            peer.expect("Hg8", reply: "E22")
        }
        let stub = GDBStubTests.stub(peer)
        try stub.resynchronise(as: client)
        #expect(stub.isStanding)
        try stub.selectThread(7)
        #expect(throws: HypervisorError.self) { try stub.selectThread(8) }
        peer.finish()
        #expect(peer.surprises == [])
        return peer
    }

    @Test("A stub with nothing on its way is asked one question")
    func plain() throws {
        let peer = try Self.check(as: .first, GDBStubTests.synchronise)
        #expect(peer.received.count == 3)
    }

    @Test(
        "A dead client's answers and stop replies before ours are discarded",
        arguments: [
            ["T02thread:01;"], ["OK", "OK", "0011223344556677"], ["T05thread:01;", "E22"], ["1"], ["vCont;c;C;s;S"],
            ["T05thread:01;awatch:10;", "T02thread:01;", "OK"], ["m01,02", "T02thread:01;", "T02thread:02;"],
        ])
    func stale(answers: [String]) throws {
        let stops = answers.filter { $0.hasPrefix("T02") }.count
        _ = try Self.check(as: .heir) { peer in
            for answer in answers { peer.reply(answer) }
            // QEMU answers every question that it gets, once.
            for (question, answer) in GDBStub.Client.heir.questions.prefix(stops + 1) {
                peer.expect(question, reply: answer)
            }
        }
    }

    @Test("A question that stopped a running machine, and was swallowed, is followed by another", arguments: 1...2)
    func swallowed(times: Int) throws {
        let questions = GDBStub.Client.first.questions
        let peer = try Self.check(as: .first) { peer in
            // Started again by its operator between two questions.
            for index in 0..<times { peer.expect(questions[index].question, reply: "T02thread:01;") }
            peer.expect(questions[times].question, reply: questions[times].answer)
        }
        #expect(peer.received.prefix(times + 1).elementsEqual(questions.prefix(times + 1).map(\.question)))
    }

    @Test("No question of an heir's is one that the client before it can have asked")
    func disjoint() {
        let (first, heir) = (GDBStub.Client.first.questions, GDBStub.Client.heir.questions)
        #expect(Set(first.map(\.question)).isDisjoint(with: heir.map(\.question)))
        for (_, answer) in heir {
            #expect(!first.contains { $0.answer.hasPrefix(answer) || answer.hasPrefix($0.answer) })
        }
    }

    @Test("A stub that closes instead of answering is a machine that ended")
    func closed() throws {
        let peer = ScriptedPeer { peer in
            _ = peer.nextPacket()
            peer.hangUp()
        }
        let stub = GDBStubTests.stub(peer)
        let error = GDBStubTests.reason { () throws(HypervisorError) in try stub.resynchronise(as: .first) }
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
            peer.expect("vCont?", reply: "vCont;c;C;s;S")
            if wasRunning { peer.expect("qfThreadInfo", reply: "m01") }
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
