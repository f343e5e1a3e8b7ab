import Glibc
import HypervisorInterface

@testable import QEMUHypervisor

/// Plays QEMU at the other end of a socket pair, on a thread of its own.
///
/// What it reads is what it waits for: nothing here depends on time.
final class ScriptedPeer: @unchecked Sendable {
    /// Ours to give to the client under test.
    let client: Int32
    private let descriptor: Int32
    private var thread = pthread_t()
    private var script: ((ScriptedPeer) -> Void)?
    private var input: [UInt8] = []
    /// What was received and sent in an order that the script did not expect.
    private(set) var surprises: [String] = []
    private(set) var received: [String] = []

    init(_ script: @escaping @Sendable (ScriptedPeer) -> Void) {
        var pair: [Int32] = [-1, -1]
        let status = socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &pair)
        precondition(status == 0)
        client = pair[0]
        descriptor = pair[1]
        self.script = script
        let started = pthread_create(
            &thread, nil,
            { argument in
                let peer = Unmanaged<ScriptedPeer>.fromOpaque(argument!).takeRetainedValue()
                peer.script?(peer)
                peer.script = nil
                return nil
            }, Unmanaged.passRetained(self).toOpaque())
        precondition(started == 0)
    }

    deinit { close(descriptor) }

    /// Waits until the script is through.
    func finish() { pthread_join(thread, nil) }

    func note(_ surprise: String) { surprises.append(surprise) }

    /// Closes the connection.
    func hangUp() { shutdown(descriptor, Int32(SHUT_RDWR)) }

    func send(_ text: String) {
        let bytes = Array(text.utf8)
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes {
                Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { return }
            done += count
        }
    }

    /// Takes what has been sent with a descriptor, and returns the descriptor.
    func receiveDescriptor() -> Int32 {
        var bytes = [UInt8](repeating: 0, count: 4096)
        var control = [UInt64](repeating: 0, count: 8)
        let count = bytes.withUnsafeMutableBytes { buffer in
            control.withUnsafeMutableBytes { controlBuffer in
                var part = iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
                return withUnsafeMutablePointer(to: &part) { parts in
                    var message = msghdr(
                        msg_name: nil, msg_namelen: 0, msg_iov: parts, msg_iovlen: 1,
                        msg_control: controlBuffer.baseAddress, msg_controllen: controlBuffer.count, msg_flags: 0)
                    return recvmsg(descriptor, &message, 0)
                }
            }
        }
        guard count > 0 else { return -1 }
        input += bytes[..<count]
        // struct cmsghdr is 16 bytes; the descriptor follows (cmsg(3)).
        return Int32(truncatingIfNeeded: control[2])
    }

    private func more() -> Bool {
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = read(descriptor, &buffer, buffer.count)
        if count > 0 { input += buffer[..<count] }
        return count > 0
    }

    // MARK: The gdbstub

    /// Sends a packet.
    func reply(_ payload: String) { send("+" + String(decoding: GDBPacket.frame(payload), as: UTF8.self)) }

    /// Waits for the client's next packet, or its byte that asks for a stop.
    func nextPacket() -> String? {
        while true {
            // Acknowledgements, of packets that this end sent.
            while input.first == UInt8(ascii: "+") { input.removeFirst() }
            if input.first == 0x03 {
                input.removeFirst()
                received.append("^C")
                return "^C"
            }
            if let packet = GDBPacket.take(from: &input) {
                let text = String(decoding: packet, as: UTF8.self)
                received.append(text)
                return text
            }
            guard more() else { return nil }
        }
    }

    /// Waits for this very packet, and answers.
    func expect(_ packet: String, reply answers: String...) {
        let next = nextPacket()
        if next != packet { surprises.append("\(next ?? "the end") instead of \(packet)") }
        for answer in answers { reply(answer) }
    }

    // MARK: QMP

    static let greeting = """
        {"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}\r\n
        """

    /// Waits for the client's next command.
    func nextCommand() -> (name: String, id: String, arguments: JSONValue?)? {
        while true {
            if let end = input.firstIndex(of: UInt8(ascii: "\n")) {
                let line = Array(input[..<end])
                input.removeSubrange(...end)
                guard let request = JSONText.decode(line), let name = request["execute"]?.string,
                    let id = request["id"]?.string
                else { return nil }
                received.append(name)
                return (name, id, request["arguments"])
            }
            guard more() else { return nil }
        }
    }

    /// Waits for a command and sends `before`, then what it returns.
    func expectCommand(_ name: String, returns value: String = "{}", before: String = "") {
        guard let command = nextCommand() else {
            surprises.append("the end instead of \(name)")
            return
        }
        if command.name != name { surprises.append("\(command.name) instead of \(name)") }
        send(before + "{\"return\": \(value), \"id\": \"\(command.id)\"}\r\n")
    }
}
