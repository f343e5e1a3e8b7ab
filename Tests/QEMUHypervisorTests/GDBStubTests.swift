import GuestMemory
import HypervisorInterface
import Testing

@testable import QEMUHypervisor

@Suite("The gdbstub's client") struct GDBStubTests {
    static func stub(_ peer: ScriptedPeer) -> GDBStub {
        GDBStub(socket: Socket(descriptor: peer.client, peer: "the test"), pulse: Pulse())
    }

    /// A stub that has resynchronised.
    static let synchronise: @Sendable (ScriptedPeer) -> Void = { peer in
        peer.expect("vCont?", reply: "vCont;c;C;s;S")
    }

    static func reason(_ body: () throws(HypervisorError) -> Void) -> HypervisorError? {
        do throws(HypervisorError) {
            try body()
            return nil
        } catch {
            return error
        }
    }

    @Test("A packet's answer is returned, whatever acknowledgements stand before it")
    func transacts() throws {
        let peer = ScriptedPeer { peer in
            _ = peer.nextPacket()
            peer.send("+++$1f")
            peer.send("2e#")
            peer.send("2c")
        }
        #expect(try Self.stub(peer).transact("g") == Array("1f2e".utf8))
        peer.finish()
        #expect(peer.received == ["g"])
    }

    @Test("A packet that a running machine swallowed is sent again, and the stop that it caused is ours")
    func swallowed() throws {
        let peer = ScriptedPeer { peer in
            peer.expect("qfThreadInfo", reply: "T02thread:01;")
            peer.expect("qC", reply: "QC01")
            peer.expect("qfThreadInfo", reply: "m01,02")
            peer.expect("qsThreadInfo", reply: "m03")
            peer.expect("qsThreadInfo", reply: "l")
        }
        let stub = Self.stub(peer)
        #expect(!stub.isStanding)
        #expect(try stub.threadCount() == 3)
        #expect(stub.isStanding && stub.stopsToBeReported == 1 && stub.hasStoppedUnasked)
        peer.finish()
        #expect(peer.surprises == [])
    }

    @Test("An operator's stop that was reported before a packet is not that packet's doing")
    func stoppedBefore() throws {
        let peer = ScriptedPeer { peer in
            peer.reply("T02thread:01;")
            peer.expect("Hg2", reply: "OK")
        }
        let stub = Self.stub(peer)
        #expect(Socket.waitForInput([stub.socket.descriptor], until: .now + .seconds(10))[0])
        try stub.selectThread(2)
        #expect(stub.isStanding && stub.stopsToBeReported == 0 && !stub.hasStoppedUnasked)
        peer.finish()
        #expect(peer.received == ["Hg2"])
    }

    @Test("A packet that was answered all the same, after its operator's stop, is not sent again")
    func answeredAfterStop() throws {
        let peer = ScriptedPeer { peer in
            peer.expect("g", reply: "T02thread:01;", "1f2e")
            peer.expect("qC", reply: "QC01")
            peer.expect("Hg2", reply: "OK")
        }
        let stub = Self.stub(peer)
        #expect(try stub.transact("g") == Array("1f2e".utf8))
        try stub.selectThread(2)
        #expect(stub.isStanding && stub.stopsToBeReported == 0 && !stub.hasStoppedUnasked)
        peer.finish()
        #expect(peer.surprises == [])
    }

    @Test("A machine that is started again while it is asked stays in step")
    func startedWhileAsked() throws {
        let peer = ScriptedPeer { peer in
            peer.expect("g", reply: "T02thread:01;")
            peer.expect("qC", reply: "QC01", "T02thread:01;")
            // This one was not swallowed: the stop was there before it.
            peer.expect("g", reply: "1f2e")
            peer.expect("qC", reply: "QC01")
            peer.expect("Hg2", reply: "OK")
        }
        let stub = Self.stub(peer)
        #expect(try stub.transact("g") == Array("1f2e".utf8))
        try stub.selectThread(2)
        peer.finish()
        #expect(peer.surprises == [])
    }

    @Test("A breakpoint's stop that comes before an answer is kept for whoever asks for stops")
    func stopBeforeAnswer() throws {
        let peer = ScriptedPeer { peer in
            peer.expect("Hg2", reply: "T05thread:02;", "OK")
        }
        let stub = Self.stub(peer)
        try stub.selectThread(2)
        #expect(try stub.takeStop() == .trap(thread: 2, watch: nil))
        #expect(try stub.takeStop() == nil)
        peer.finish()
        #expect(peer.received == ["Hg2"])
    }

    @Test("After a breakpoint's stop that came before an answer the machine is known to stand, and the stop to be ours")
    func stopBeforeAnswerIsCounted() throws {
        let peer = ScriptedPeer { peer in
            peer.expect("Hg2", reply: "T05thread:02;", "OK")
        }
        let stub = Self.stub(peer)
        try stub.selectThread(2)
        #expect(stub.isStanding && stub.stopsToBeReported == 1)
        peer.finish()
    }

    @Test("An error answer is an error that names the command", arguments: ["E22", "", "E01"])
    func refused(answer: String) throws {
        let peer = ScriptedPeer { peer in peer.expect("Z1,fffff8064a204000,1", reply: answer) }
        let stub = Self.stub(peer)
        let error = Self.reason { () throws(HypervisorError) in
            try stub.insert(.execution(GuestVirtualAddress(0xffff_f806_4a20_4000)))
        }
        guard case .commandFailed(let command, let reason) = try #require(error) else {
            Issue.record("\(error!)")
            return
        }
        #expect(command == "Z1,fffff8064a204000,1" && reason.contains("\"\(answer)\""))
        peer.finish()
    }

    @Test("Breakpoints and watchpoints are told apart, and one that is not set is no error to remove")
    func sites() throws {
        let peer = ScriptedPeer { peer in
            peer.expect("Z4,ffffb80000028f08,8", reply: "OK")
            peer.expect("z4,ffffb80000028f08,8", reply: "E22")
            peer.expect("z1,10,1", reply: "OK")
            peer.expect("z1,10,1", reply: "E01")
        }
        let stub = Self.stub(peer)
        let watch = BreakpointSite.access(GuestVirtualAddress(0xffff_b800_0002_8f08), length: 8)
        try stub.insert(watch)
        try stub.remove(watch)
        try stub.remove(.execution(GuestVirtualAddress(0x10)))
        #expect(throws: HypervisorError.self) { try stub.remove(.execution(GuestVirtualAddress(0x10))) }
        peer.finish()
        #expect(peer.surprises == [])
    }

    @Test(
        "Our interrupt's stop is ours; a breakpoint that was faster leaves its stop to be taken",
        arguments: [
            ("T02thread:01;", true), ("T05thread:02;", false), ("T05thread:02;awatch:20;", false),
        ])
    func interrupts(reply: String, isOurs: Bool) throws {
        let peer = ScriptedPeer { peer in peer.expect("^C", reply: reply) }
        let stub = Self.stub(peer)
        #expect(try stub.interrupt() == isOurs)
        #expect(stub.isStanding && stub.stopsToBeReported == 1)
        #expect(try (stub.takeStop() == nil) == isOurs)
        peer.finish()
        #expect(peer.received == ["^C"])
    }

    @Test("A step names its thread alone, and ends with the machine standing")
    func steps() throws {
        let peer = ScriptedPeer { peer in peer.expect("vCont;s:b", reply: "T05thread:0b;") }
        let stub = Self.stub(peer)
        #expect(try stub.step(thread: 11) == 11)
        #expect(stub.isStanding && stub.startsToBeReported == 1 && stub.stopsToBeReported == 1)
        #expect(try stub.takeStop() == nil)
        peer.finish()
        #expect(peer.surprises == [])
    }

    @Test("A step that another thread's stop ended early says so")
    func stepEndedEarly() throws {
        let peer = ScriptedPeer { peer in peer.expect("vCont;s:2", reply: "T05thread:03;awatch:1000;") }
        let stub = Self.stub(peer)
        #expect(try stub.step(thread: 2) == 3)
        peer.finish()
    }

    @Test("A resumed machine runs until its next stop, which is counted as one that QEMU will report")
    func resumes() throws {
        let peer = ScriptedPeer { peer in
            peer.expect("^C", reply: "T02thread:01;")
            peer.expect("c", reply: "T05thread:01;")
        }
        let stub = Self.stub(peer)
        _ = try stub.interrupt()
        try stub.resume()
        #expect(!stub.isStanding && stub.startsToBeReported == 1)
        peer.finish()
        #expect(try stub.takeStop() == .trap(thread: 1, watch: nil))
        #expect(stub.isStanding && stub.stopsToBeReported == 2)
    }

    @Test("A resumption is done when QEMU has acknowledged it, and a stop that comes with that is not lost")
    func resumeIsAcknowledged() throws {
        let peer = ScriptedPeer { peer in
            peer.expect("c")
            peer.send("+$T05threa")
            peer.send("d:02;#00")
        }
        let stub = Self.stub(peer)
        try stub.resume()
        #expect(peer.received == ["c"])
        peer.finish()
        #expect(try stub.takeStop() == .trap(thread: 2, watch: nil))
    }

    @Test("A machine that ends instead of resuming is gone")
    func goneOnResume() throws {
        let peer = ScriptedPeer { peer in
            peer.expect("c")
            peer.hangUp()
        }
        let stub = Self.stub(peer)
        let error = Self.reason { () throws(HypervisorError) in try stub.resume() }
        guard case .gone = try #require(error) else {
            Issue.record("\(error!)")
            return
        }
        peer.finish()
    }

    @Test("A stop that the operator made is not one of ours to be reported")
    func operatorStop() throws {
        let peer = ScriptedPeer { peer in peer.reply("T02thread:01;") }
        peer.finish()
        let stub = Self.stub(peer)
        #expect(try stub.takeStop() == .interrupted)
        #expect(stub.isStanding && stub.stopsToBeReported == 0)
        stub.noteStartedByOthers()
        #expect(!stub.isStanding)
    }

    @Test(
        "Code is written by physical address, in parts, and the stub's mode put back", arguments: [1, 1024, 1025, 2100])
    func writesPhysical(count: Int) throws {
        let peer = ScriptedPeer { peer in
            while let packet = peer.nextPacket() {
                peer.reply("OK")
                if packet == "Qqemu.PhyMemMode:0" { return }
            }
        }
        let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 13) }
        try Self.stub(peer).writePhysical(bytes, at: 0x1234_5000)
        peer.finish()
        #expect(peer.received.first == "Qqemu.PhyMemMode:1" && peer.received.last == "Qqemu.PhyMemMode:0")
        var written: [UInt8] = []
        for packet in peer.received.dropFirst().dropLast() {
            let parts = packet.dropFirst().split(separator: ":")
            let place = parts[0].split(separator: ",").map { UInt64($0, radix: 16)! }
            let data = try #require(GDBPacket.bytes(fromHex: Array(parts[1].utf8)))
            #expect(
                packet.hasPrefix("M") && place[0] == 0x1234_5000 + UInt64(written.count)
                    && place[1] == UInt64(data.count))
            // The stub's buffer is 4 KiB.
            #expect(packet.utf8.count < 4096)
            written += data
        }
        #expect(written == bytes)
    }

    @Test("A write that fails puts the stub's mode back too, and is the error reported")
    func writeFails() throws {
        let peer = ScriptedPeer { peer in
            peer.expect("Qqemu.PhyMemMode:1", reply: "OK")
            peer.expect("Mff,1:01", reply: "E14")
            peer.expect("Qqemu.PhyMemMode:0", reply: "OK")
        }
        let stub = Self.stub(peer)
        let error = Self.reason { () throws(HypervisorError) in try stub.writePhysical([1], at: 0xff) }
        guard case .commandFailed("Mff,1:01", _) = try #require(error) else {
            Issue.record("\(error!)")
            return
        }
        peer.finish()
        #expect(peer.surprises == [])
    }

    @Test("A register is written as bytes in memory's order, of the register's size")
    func writesRegister() throws {
        let peer = ScriptedPeer { peer in
            peer.expect("P10=004020064af8ffff", reply: "OK")
            peer.expect("P11=46020000", reply: "OK")
        }
        let stub = Self.stub(peer)
        try stub.writeRegister(number: 16, value: 0xffff_f84a_0620_4000, size: 8)
        try stub.writeRegister(number: 17, value: 0x246, size: 4)
        peer.finish()
        #expect(peer.surprises == [])
    }

    @Test("A closed connection is a machine that ended, whoever waits")
    func closed() throws {
        let peer = ScriptedPeer { peer in
            _ = peer.nextPacket()
            peer.hangUp()
        }
        let stub = Self.stub(peer)
        let error = Self.reason { () throws(HypervisorError) in _ = try stub.transact("g") }
        guard case .gone = try #require(error) else {
            Issue.record("\(error!)")
            return
        }
        let taking = Self.reason { () throws(HypervisorError) in _ = try stub.takeStop() }
        guard case .gone = try #require(taking) else {
            Issue.record("\(taking!)")
            return
        }
        peer.finish()
    }

    @Test("A stop that arrived before the connection closed is still taken")
    func stopBeforeEnd() throws {
        let peer = ScriptedPeer { peer in
            peer.reply("W00")
            peer.hangUp()
        }
        peer.finish()
        let stub = Self.stub(peer)
        #expect(try stub.takeStop() == .exited)
        #expect(throws: HypervisorError.self) { try stub.takeStop() }
    }
}
