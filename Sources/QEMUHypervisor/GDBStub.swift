import GuestMemory
import HypervisorInterface
import X86

/// A connection to QEMU's gdbstub.
///
/// What makes this stub different from a debugger's usual peer: any byte it receives while the guest
/// runs stops the guest and is swallowed. So nothing is sent to a running guest but the one byte that
/// asks for a stop, replies are never acknowledged (the `$` of the next packet does that), and each
/// change between running and standing is kept account of here.
final class GDBStub {
    /// How long the stub may take for a packet. It answers from QEMU's main loop.
    static let answerTimeout = Duration.seconds(10)

    let socket: Socket
    let pulse: Pulse
    /// The vCPUs stand, as far as this connection knows: the stub reported a stop, or never a start.
    private(set) var isStanding = false
    /// It stood when the connection was opened, and nothing has started it since.
    private var stoodAtFirst = false
    /// A packet reached a machine that was believed to stand (it woke by itself, or its operator started it), and
    /// stopped it. It has not been started again.
    private(set) var hasStoppedUnasked = false
    /// Called when that has happened.
    var onUnaskedStop: () throws(HypervisorError) -> Void = { () throws(HypervisorError) in }
    /// How often this connection stopped and started the machine and QEMU has not yet said so by QMP.
    var stopsToBeReported = 0
    var startsToBeReported = 0
    /// The description's files, as the stub sent them.
    private var annexes: [String: [UInt8]] = [:]
    private var parsedDescription: TargetDescription?
    private var input: [UInt8] = []
    private var stopReplies: [GDBStopReply] = []

    init(socket: Socket, pulse: Pulse) {
        self.socket = socket
        self.pulse = pulse
    }

    // MARK: Packets

    private func receivePacket(until deadline: Deadline, for purpose: String) throws(HypervisorError) -> [UInt8] {
        while true {
            if let packet = GDBPacket.take(from: &input) { return packet }
            if socket.atEnd { throw .gone("QEMU closed the debug connection: it ended") }
            guard ContinuousClock.now < deadline else { throw .timedOut(waitingFor: purpose) }
            _ = try pulse.waitForInput([socket.descriptor], until: deadline)
            socket.drain(into: &input)
        }
    }

    /// Sends a packet to a machine that stands and returns the reply.
    func transact(_ packet: String) throws(HypervisorError) -> [UInt8] {
        let deadline = ContinuousClock.now + Self.answerTimeout
        // A stop that is here already is not this packet's doing: the stub reports its operator's stops too.
        socket.drain(into: &input)
        while let early = GDBPacket.take(from: &input) {
            if let stop = GDBStopReply(early) { keep(stop) }
        }
        try socket.write(GDBPacket.frame(packet))
        while true {
            let reply = try receivePacket(until: deadline, for: "QEMU's gdbstub to answer \"\(packet.prefix(40))\"")
            guard let stop = GDBStopReply(reply) else { return reply }
            guard stop == .interrupted else {
                keep(stop)
                continue
            }
            // Either the machine ran when our packet arrived, which stopped it and was swallowed; or its operator
            // stopped it just before, and the answer is still to come.
            if let answer = try answerOnItsWay(until: deadline) {
                keep(stop)
                return answer
            }
            try noteUnaskedStop()
            try socket.write(GDBPacket.frame(packet))
        }
    }

    /// The answer to the last packet, if that was not swallowed: it comes before the answer to a question that is asked
    /// after it, and that no other packet has.
    private func answerOnItsWay(until deadline: Deadline) throws(HypervisorError) -> [UInt8]? {
        var answer: [UInt8]?
        let questions = Client.heir.questions
        try askInTurn(questions, until: deadline) { reply in
            if let stop = GDBStopReply(reply) {
                if stop != .interrupted { keep(stop) }
            } else if !questions.contains(where: { reply.starts(with: $0.answer.utf8) }) {
                answer = reply
            }
        }
        return answer
    }

    /// Asks the first of some questions and waits for its answer, or for that of a later one.
    ///
    /// Each is asked once, so that its answer is the last thing on its way. A stop meanwhile may be an earlier one's,
    /// or that of a running machine which swallowed the question: then the next one is asked.
    /// - Parameter take: gets what comes before the answer.
    private func askInTurn(
        _ questions: [(question: String, answer: String)], until deadline: Deadline, _ take: ([UInt8]) -> Void
    ) throws(HypervisorError) {
        for (question, answer) in questions {
            try socket.write(GDBPacket.frame(question))
            while true {
                let reply = try receivePacket(until: deadline, for: "QEMU's gdbstub to answer \"\(question)\"")
                if reply.starts(with: answer.utf8) { return }
                take(reply)
                if GDBStopReply(reply) == .interrupted { break }
            }
        }
        throw .unexpectedAnswer("a machine that is started and stopped all the time")
    }

    private func noteUnaskedStop() throws(HypervisorError) {
        isStanding = true
        stopsToBeReported += 1
        hasStoppedUnasked = true
        try onUnaskedStop()
    }

    /// Keeps a stop reply that came unasked for whoever takes stops.
    private func keep(_ stop: GDBStopReply) {
        stoodAtFirst = false
        if !isStanding {
            isStanding = true
            // A stop that we did not ask for is QEMU's to report as its operator's.
            if case .trap = stop { stopsToBeReported += 1 }
        }
        stopReplies.append(stop)
    }

    private func expectOK(_ packet: String) throws(HypervisorError) {
        let reply = try transact(packet)
        guard reply == Array("OK".utf8) else {
            throw .commandFailed(
                command: packet, reason: "the gdbstub said \"\(String(decoding: reply, as: UTF8.self))\"")
        }
    }

    // MARK: Running and standing

    /// Begins a session with a stub that was just started, which stopped a running machine.
    func open(wasRunning: Bool) throws(HypervisorError) {
        if wasRunning { stopsToBeReported += 1 }
        // Whether the stub reports that stop depends on whether it was started before or after its
        // connection was there.
        if try resynchronise(as: .first), !wasRunning { try noteUnaskedStop() }
        stoodAtFirst = !wasRunning
        try readDescription()
    }

    /// Fetches the target description, without which the stub takes no `P`. It is parsed later: a machine may
    /// be standing for this.
    func readDescription() throws(HypervisorError) {
        let main = "target.xml"
        let document = try readAnnex(main)
        annexes[main] = document
        for name in TargetDescription.includes(in: document).prefix(8) { annexes[name] = try readAnnex(name) }
    }

    /// Where the registers are.
    func description() throws(HypervisorError) -> TargetDescription {
        if let parsedDescription { return parsedDescription }
        guard !annexes.isEmpty else { throw .unexpectedAnswer("registers without a description") }
        let annexes = self.annexes
        do {
            let description = try TargetDescription { annexes[$0] ?? [] }
            parsedDescription = description
            return description
        } catch {
            throw .unexpectedAnswer("a target description that cannot be read")
        }
    }

    /// Who begins to speak with a stub. Each has questions that the other never asks, with answers that nothing
    /// else has, so that what a dead client left unread is never taken for an answer.
    enum Client {
        /// Of a connection that was just made.
        case first
        /// Of the connection of a client that died.
        case heir

        /// Questions, and what their answers begin with.
        var questions: [(question: String, answer: String)] {
            switch self {
            case .first: [("vCont?", "vCont"), ("qfThreadInfo", "m"), ("qAttached", "1")]
            case .heir: [("qC", "QC"), ("qSupported", "PacketSize"), ("qXfer:features:read::0,1", "E00")]
            }
        }
    }

    /// Discards what is still on its way (a dead client's answers, a stop reply that may come or not), so
    /// that replies match questions.
    /// - Returns: whether the machine stopped meanwhile.
    @discardableResult
    func resynchronise(as client: Client) throws(HypervisorError) -> Bool {
        var hasStopped = false
        try askInTurn(client.questions, until: .now + Self.answerTimeout) { reply in
            if GDBStopReply(reply) == .interrupted { hasStopped = true }
        }
        isStanding = true
        return hasStopped
    }

    private func readAnnex(_ annex: String) throws(HypervisorError) -> [UInt8] {
        var content: [UInt8] = []
        while content.count < 1 << 20 {
            let offset = String(content.count, radix: 16)
            let reply = try transact("qXfer:features:read:\(annex):\(offset),ffb")
            guard let kind = reply.first, kind == UInt8(ascii: "m") || kind == UInt8(ascii: "l") else {
                throw .unexpectedAnswer("no target description from the gdbstub")
            }
            content += reply.dropFirst()
            if kind == UInt8(ascii: "l") || reply.count == 1 { break }
        }
        return content
    }

    /// Stops a running machine.
    /// - Returns: whether the machine stands because of this call; otherwise it had stopped by itself, and
    ///   its stop reply waits to be taken.
    func interrupt() throws(HypervisorError) -> Bool {
        // An acknowledgement first: after a stop that was not ours (its operator's) a reply is still
        // unacknowledged, and until it is, QEMU passes over everything but packets. Where nothing is, this
        // byte already stops the machine, and the next one means nothing.
        try socket.write([UInt8(ascii: "+"), 0x03])
        let deadline = ContinuousClock.now + Self.answerTimeout
        let reply = try receivePacket(until: deadline, for: "the machine to stop")
        guard let stop = GDBStopReply(reply) else {
            throw .unexpectedAnswer("\"\(String(decoding: reply, as: UTF8.self))\" for an interrupt")
        }
        isStanding = true
        stopsToBeReported += 1
        if stop == .interrupted { return true }
        stopReplies.append(stop)
        return false
    }

    /// Lets the machine run, and returns when QEMU has taken the packet.
    ///
    /// QEMU reads its debug and its QMP connection in no set order: without the wait, a QMP command that
    /// ends the stub could overtake the packet, and the machine would stand for good.
    func resume() throws(HypervisorError) {
        isStanding = false
        hasStoppedUnasked = false
        startsToBeReported += 1
        try socket.write(GDBPacket.frame("c"))
        let deadline = ContinuousClock.now + Self.answerTimeout
        while true {
            if input.first == UInt8(ascii: "+") {
                input.removeFirst()
                return
            } else if input.first == UInt8(ascii: "$") {
                let packet = try receivePacket(until: deadline, for: "QEMU's gdbstub to take \"c\"")
                if let stop = GDBStopReply(packet) { keep(stop) }
            } else if !input.isEmpty {
                input.removeFirst()
            } else {
                if socket.atEnd { throw .gone("QEMU closed the debug connection: it ended") }
                guard ContinuousClock.now < deadline else {
                    throw .timedOut(waitingFor: "QEMU's gdbstub to take \"c\"")
                }
                _ = try pulse.waitForInput([socket.descriptor], until: deadline)
                socket.drain(into: &input)
            }
        }
    }

    /// Executes one instruction on a thread while the others stand.
    /// - Returns: the thread that the stop names: with several vCPUs another one's stop can end the step early.
    func step(thread: Int) throws(HypervisorError) -> Int {
        isStanding = false
        hasStoppedUnasked = false
        startsToBeReported += 1
        // Never "s" or "vCont;s:…;c": both let the other vCPUs run past breakpoints.
        try socket.write(GDBPacket.frame("vCont;s:\(String(thread, radix: 16))"))
        let stop = try awaitStop(for: "a single step to end")
        stopsToBeReported += 1
        if case .trap(let stopped, _) = stop { return stopped }
        return thread
    }

    private func awaitStop(for purpose: String) throws(HypervisorError) -> GDBStopReply {
        let deadline = ContinuousClock.now + Self.answerTimeout
        while true {
            let reply = try receivePacket(until: deadline, for: purpose)
            if let stop = GDBStopReply(reply) {
                isStanding = true
                return stop
            }
        }
    }

    /// The machine's operator started it: nothing of ours did.
    func noteStartedByOthers() { isStanding = false }

    /// The machine woke from sleep. If it slept when the connection was opened, nobody has said so here.
    func noteWoken() {
        if stoodAtFirst { isStanding = false }
        stoodAtFirst = false
    }

    /// A vCPU has stopped at a breakpoint or for a watch, and nobody has taken that yet.
    var hasPendingStop: Bool { stopReplies.contains { if case .trap = $0 { true } else { false } } }

    /// Takes what has arrived, and returns the oldest stop reply that nobody has taken.
    func takeStop() throws(HypervisorError) -> GDBStopReply? {
        socket.drain(into: &input)
        while let packet = GDBPacket.take(from: &input) {
            guard let stop = GDBStopReply(packet) else { continue }
            keep(stop)
        }
        if stopReplies.isEmpty {
            if socket.atEnd { throw .gone("QEMU closed the debug connection: it ended") }
            return nil
        }
        return stopReplies.removeFirst()
    }

    // MARK: Registers, memory, breakpoints

    func threadCount() throws(HypervisorError) -> Int {
        var count = 0
        var reply = try transact("qfThreadInfo")
        while reply.first == UInt8(ascii: "m") {
            count += reply.split(separator: UInt8(ascii: ",")).count
            reply = try transact("qsThreadInfo")
        }
        guard count > 0 else { throw .unexpectedAnswer("a machine without vCPUs") }
        return count
    }

    func selectThread(_ thread: Int) throws(HypervisorError) { try expectOK("Hg\(String(thread, radix: 16))") }

    func readRegisters() throws(HypervisorError) -> [UInt8] {
        let reply = try transact("g")
        guard let bytes = GDBPacket.bytes(fromHex: reply) else {
            throw .unexpectedAnswer("registers that are no hexadecimal digits")
        }
        return bytes
    }

    func writeRegister(number: Int, value: UInt64, size: Int) throws(HypervisorError) {
        let bytes = (0..<min(size, 8)).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) }
        try writeRegister(number: number, bytes)
    }

    /// - Parameter bytes: as many as the register has, the lowest first.
    func writeRegister(number: Int, _ bytes: [UInt8]) throws(HypervisorError) {
        try expectOK("P\(String(number, radix: 16))=\(String(decoding: GDBPacket.hex(bytes), as: UTF8.self))")
    }

    /// Reads RAM by physical address: a few bytes, as one packet.
    func readPhysical(_ count: Int, at address: UInt64) throws(HypervisorError) -> [UInt8] {
        try expectOK("Qqemu.PhyMemMode:1")
        let answer: Result<[UInt8], HypervisorError>
        do throws(HypervisorError) {
            answer = .success(try transact("m\(String(address, radix: 16)),\(String(count, radix: 16))"))
        } catch {
            answer = .failure(error)
        }
        try expectOK("Qqemu.PhyMemMode:0")
        guard let bytes = GDBPacket.bytes(fromHex: try answer.get()), bytes.count == count else {
            throw .unexpectedAnswer("QEMU's gdbstub did not read \(count) bytes of RAM")
        }
        return bytes
    }

    /// Writes RAM by physical address, so that neither page tables nor the vCPU's address space matter.
    /// Under TCG this is also the only write that reaches code which is already translated.
    func writePhysical(_ bytes: [UInt8], at address: UInt64) throws(HypervisorError) {
        try expectOK("Qqemu.PhyMemMode:1")
        var result: HypervisorError?
        do {
            // The stub's packet buffer is 4 KiB; two digits a byte and the header must fit.
            var done = 0
            while done < bytes.count {
                let part = bytes[done..<min(done + 1024, bytes.count)]
                let text = String(decoding: GDBPacket.hex(part), as: UTF8.self)
                let place = String(address &+ UInt64(done), radix: 16)
                try expectOK("M\(place),\(String(part.count, radix: 16)):\(text)")
                done += part.count
            }
        } catch {
            result = error
        }
        try expectOK("Qqemu.PhyMemMode:0")
        if let result { throw result }
    }

    /// Whether the selected thread's next instruction makes it wait for an interrupt (HLT, or MWAIT, which TCG takes for
    /// the same): a step of that ends when an interrupt comes, and not before.
    func isAboutToWait(at rip: UInt64) throws(HypervisorError) -> Bool {
        // Where the code cannot be read an error's number comes instead.
        let reply = try transact("m\(String(rip, radix: 16)),3")
        guard let bytes = GDBPacket.bytes(fromHex: reply) else { return false }
        return bytes.first == 0xf4 || bytes == [0x0f, 0x01, 0xc9]
    }

    /// Writes a few bytes by the linear address that the selected thread's vCPU has them at.
    func writeVirtual(_ bytes: [UInt8], at address: UInt64) throws(HypervisorError) {
        let text = String(decoding: GDBPacket.hex(bytes), as: UTF8.self)
        try expectOK("M\(String(address, radix: 16)),\(String(bytes.count, radix: 16)):\(text)")
    }

    private func packet(_ verb: String, _ site: BreakpointSite) -> String {
        switch site {
        case .execution(let address): "\(verb)1,\(String(address.rawValue, radix: 16)),1"
        case .access(let address, let length):
            "\(verb)4,\(String(address.rawValue, radix: 16)),\(String(length, radix: 16))"
        }
    }

    func insert(_ site: BreakpointSite) throws(HypervisorError) { try expectOK(packet("Z", site)) }

    /// Removes a site. One that is not set (a dead client's last word may not have arrived) is no error.
    func remove(_ site: BreakpointSite) throws(HypervisorError) {
        let reply = try transact(packet("z", site))
        guard reply == Array("OK".utf8) || reply == Array("E22".utf8) else {
            throw .commandFailed(command: "removing a breakpoint", reason: String(decoding: reply, as: UTF8.self))
        }
    }
}
