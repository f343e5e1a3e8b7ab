import CLinux
import FoundationEssentials
import Glibc
import HypervisorInterface

/// An event that QEMU sent on its QMP connection.
struct QMPEvent: Equatable, Sendable {
    var name: String
    var data: JSONValue
}

/// A connection to QEMU's QMP socket.
///
/// Synchronous: a command is sent and its answer awaited; events that arrive meanwhile are kept.
/// Protocol: QEMU's docs/interop/qmp-spec.rst.
final class QMPClient {
    /// How long QEMU may take for a command. It answers from its main loop, so only a stuck one takes long.
    static let answerTimeout = Duration.seconds(10)
    /// How long QEMU may take to greet. Another client's socket never does.
    static let greetingTimeout = Duration.seconds(2)

    private static let ended = "QEMU closed its QMP connection: it ended"

    let socket: Socket
    let pulse: Pulse
    /// Events not yet taken, oldest first.
    private(set) var events: [QMPEvent] = []
    private var input: [UInt8] = []
    private var answers: [String: JSONValue] = [:]
    private var greeting: JSONValue?
    private var nextID = 0
    private let idPrefix: String

    /// - Parameter idPrefix: tells this client's answers from those that a dead client left unread.
    init(socket: Socket, pulse: Pulse, idPrefix: String = "vigil") {
        self.socket = socket
        self.pulse = pulse
        self.idPrefix = idPrefix
    }

    /// Waits for the greeting of a new connection and leaves the capabilities negotiation.
    /// - Returns: QEMU's version.
    func negotiate(target: String) throws(HypervisorError) -> String {
        let deadline = ContinuousClock.now + Self.greetingTimeout
        while greeting == nil {
            guard !socket.atEnd else { throw .absent(target: target, reason: "it closed the connection") }
            guard ContinuousClock.now < deadline else { throw .heldByAnotherClient(target: target) }
            try receive(until: deadline)
        }
        _ = try execute("qmp_capabilities")
        let version = greeting?["QMP"]?["version"]?["qemu"]
        func part(_ name: String) -> String {
            if case .integer(let number)? = version?[name] { String(number) } else { "?" }
        }
        return "\(part("major")).\(part("minor")).\(part("micro"))"
    }

    /// Runs a command and returns what it returned.
    /// - Parameter descriptor: a descriptor to pass along with the command.
    /// - Throws: `commandFailed` with QEMU's own words, `gone`, `timedOut`.
    @discardableResult
    func execute(
        _ command: String, _ arguments: JSONValue? = nil, passing descriptor: Int32? = nil
    ) throws(HypervisorError) -> JSONValue {
        nextID += 1
        let id = "\(idPrefix)-\(nextID)"
        var request: [String: JSONValue] = ["execute": .string(command), "id": .string(id)]
        request["arguments"] = arguments
        var bytes: [UInt8]
        do {
            bytes = [UInt8](try JSONEncoder().encode(JSONValue.object(request)))
        } catch {
            throw .unexpectedAnswer("a command that cannot be written as JSON: \(command)")
        }
        bytes.append(UInt8(ascii: "\n"))
        if let descriptor {
            let sent = clinux_send_descriptor(socket.descriptor, bytes, bytes.count, descriptor)
            guard sent > 0 else {
                if sent == -Int(EPIPE) { throw .gone(Self.ended) }
                throw .commandFailed(command: command, reason: String(cString: strerror(Int32(-sent))))
            }
            if sent < bytes.count { try socket.write(Array(bytes[sent...])) }
        } else {
            try socket.write(bytes)
        }

        let deadline = ContinuousClock.now + Self.answerTimeout
        while true {
            if let answer = answers.removeValue(forKey: id) {
                if let error = answer["error"] {
                    throw .commandFailed(command: command, reason: error["desc"]?.string ?? "no reason given")
                }
                return answer["return"] ?? .null
            }
            try checkOpen()
            guard ContinuousClock.now < deadline else { throw .timedOut(waitingFor: "QEMU to answer \(command)") }
            try receive(until: deadline)
        }
    }

    /// Runs a command of the human monitor and returns what it printed.
    @discardableResult
    func monitor(_ line: String) throws(HypervisorError) -> String {
        let answer = try execute("human-monitor-command", ["command-line": .string(line)])
        guard let text = answer.string else { throw .unexpectedAnswer("no text from the monitor for \"\(line)\"") }
        return text
    }

    var hasEvents: Bool { !events.isEmpty }

    /// Takes the oldest event.
    func takeEvent() -> QMPEvent? { events.isEmpty ? nil : events.removeFirst() }

    /// Waits for input, until `deadline` at the latest, and takes it in.
    func receive(until deadline: Deadline) throws(HypervisorError) {
        _ = try pulse.waitForInput([socket.descriptor], until: deadline)
        takeInput()
    }

    /// Takes in whatever has arrived.
    func takeInput() {
        socket.drain(into: &input)
        while let end = input.firstIndex(of: UInt8(ascii: "\n")) {
            let line = Data(input[..<end])
            input.removeSubrange(...end)
            guard let message = try? JSONDecoder().decode(JSONValue.self, from: line) else { continue }
            take(message)
        }
    }

    /// Throws `gone` where QEMU closed the connection: nothing will come any more.
    func checkOpen() throws(HypervisorError) {
        if socket.atEnd { throw .gone(Self.ended) }
    }

    private func take(_ message: JSONValue) {
        if message["QMP"] != nil {
            greeting = message
        } else if let name = message["event"]?.string {
            events.append(QMPEvent(name: name, data: message["data"] ?? .null))
        } else if let id = message["id"]?.string, id.hasPrefix(idPrefix) {
            answers[id] = message
        }
    }
}
