import Foundation
import Glibc
import Synchronization

/// The bundled guest's serial console: one command a line, one final line that begins with `ok` or `error`.
///
/// Commands carry a number, so that one that blocks (a power request that is held) and others can be under
/// way together. Not thread-safe: one thread uses a console at a time.
public final class GuestConsole {
    /// What a command answered.
    public struct Reply: Equatable, Sendable {
        /// The lines before the final one, without their indentation.
        public var lines: [String]
        /// The final line, without the command's number.
        public var result: String

        public var isOK: Bool { result == "ok" || result.hasPrefix("ok ") }

        /// The number after `name=`, in any base that it is written in.
        public subscript(_ name: String) -> UInt64? {
            for word in result.split(separator: " ") where word.hasPrefix(name + "=") {
                let text = word.dropFirst(name.count + 1)
                return text.hasPrefix("0x") ? UInt64(text.dropFirst(2), radix: 16) : UInt64(text)
            }
            return nil
        }
    }

    public enum Failure: Error, CustomStringConvertible {
        case timedOut(waitingFor: String, log: String)
        case closed(log: String)

        public var description: String {
            switch self {
            case .timedOut(let what, let log): "the guest did not answer in time, waiting for \(what); it said:\n\(log)"
            case .closed(let log): "the guest's console was closed; it had said:\n\(log)"
            }
        }
    }

    private let descriptor: Int32
    private var buffer: [UInt8] = []
    /// Unlike those of other consoles: a guest that resumes from hibernation answers what it was asked before.
    private static let lastNumber = Mutex(0)
    /// Commands under way that answer with lines before their final one. Those lines carry no number.
    private var printing: Set<Int> = []
    private var details: [String] = []
    private var replies: [Int: Reply] = [:]
    private var freeLines: [String] = []
    /// Everything that the guest wrote, for diagnosis.
    public private(set) var log = ""

    init(descriptor: Int32) {
        self.descriptor = descriptor
        _ = fcntl(descriptor, F_SETFL, O_NONBLOCK)
    }

    deinit { close(descriptor) }

    /// Waits for a line that belongs to no command and contains `text`.
    public func waitForLine(containing text: String, within timeout: Duration = .seconds(60)) throws -> String {
        let deadline = ContinuousClock.now + timeout
        while true {
            if let index = freeLines.firstIndex(where: { $0.contains(text) }) {
                let line = freeLines[index]
                freeLines.removeSubrange(...index)
                return line
            }
            try receive(until: deadline, for: "\"\(text)\"")
        }
    }

    /// Runs a command and waits for its answer.
    @discardableResult
    public func run(_ command: String, within timeout: Duration = .seconds(60)) throws -> Reply {
        try reply(to: try start(command), within: timeout)
    }

    /// Sends a command.
    /// - Returns: the number by which its answer is known.
    public func start(_ command: String) throws -> Int {
        let number = Self.lastNumber.withLock { last in
            last += 1
            return last
        }
        if ["help", "pool", "processors", "symbols", "threads"].contains(command) { printing.insert(number) }
        let bytes = Array("#\(number) \(command)\n".utf8)
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes {
                send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            if count > 0 {
                done += count
            } else if errno == EAGAIN {
                var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                poll(&entry, 1, 1000)
            } else if errno != EINTR {
                throw Failure.closed(log: log)
            }
        }
        return number
    }

    /// Waits for the answer to a command that was started.
    public func reply(to number: Int, within timeout: Duration = .seconds(60)) throws -> Reply {
        let deadline = ContinuousClock.now + timeout
        while true {
            if let reply = replies.removeValue(forKey: number) { return reply }
            try receive(until: deadline, for: "the answer to command \(number)")
        }
    }

    /// The answer to a command that was started, if it is there.
    public func replyIfThere(to number: Int) throws -> Reply? {
        try? receive(until: .now, for: "")
        return replies.removeValue(forKey: number)
    }

    /// What somebody waited for.
    public enum Happening: Equatable, Sendable {
        /// The answer to the command.
        case reply(Reply)
        /// A line that belongs to no command.
        case line(String)
        /// The machine has ended.
        case closed
    }

    /// Waits for whichever comes first: the answer to a command, a line that belongs to no command and contains one
    /// of `texts`, or the console's end.
    public func wait(
        forReplyTo number: Int? = nil, orLineContaining texts: [String] = [], within timeout: Duration = .seconds(60)
    ) throws -> Happening {
        let deadline = ContinuousClock.now + timeout
        while true {
            if let index = freeLines.firstIndex(where: { line in texts.contains { line.contains($0) } }) {
                let line = freeLines[index]
                freeLines.removeSubrange(...index)
                return .line(line)
            }
            if let number, let reply = replies.removeValue(forKey: number) { return .reply(reply) }
            do throws(Failure) {
                try receive(until: deadline, for: texts.map { "\"\($0)\"" }.joined(separator: " or "))
            } catch {
                guard case .closed = error else { throw error }
                return .closed
            }
        }
    }

    /// Whether the answer to a command, or a line that contains one of `texts`, is there or the console has ended.
    public func isThere(replyTo number: Int?, orLineContaining texts: [String]) -> Bool {
        var isClosed = false
        do throws(Failure) {
            try receive(until: .now, for: "")
        } catch {
            if case .closed = error { isClosed = true }
        }
        return isClosed || number.map { replies[$0] != nil } == true
            || freeLines.contains { line in texts.contains { line.contains($0) } }
    }

    private func receive(until deadline: ContinuousClock.Instant, for purpose: String) throws(Failure) {
        let left = (deadline - .now).components
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        let milliseconds = max(0, left.seconds * 1000 + left.attoseconds / 1_000_000_000_000_000)
        guard poll(&entry, 1, Int32(clamping: milliseconds)) > 0 else {
            if milliseconds == 0 { throw Failure.timedOut(waitingFor: purpose, log: log) }
            return
        }
        var chunk = [UInt8](repeating: 0, count: 4096)
        let count = read(descriptor, &chunk, chunk.count)
        if count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR) { throw Failure.closed(log: log) }
        guard count > 0 else { return }
        buffer += chunk[..<count]
        while let end = buffer.firstIndex(of: UInt8(ascii: "\n")) {
            let line = String(decoding: buffer[..<end].filter { $0 != UInt8(ascii: "\r") }, as: UTF8.self)
            buffer.removeSubrange(...end)
            take(line)
        }
    }

    private func take(_ line: String) {
        log += line + "\n"
        if line.hasPrefix("  ") {
            details.append(line.trimmingCharacters(in: .whitespaces))
        } else if line.hasPrefix("#"), let space = line.firstIndex(of: " "),
            let number = Int(line[line.index(after: line.startIndex)..<space])
        {
            var reply = Reply(lines: [], result: String(line[line.index(after: space)...]))
            if printing.remove(number) != nil { swap(&reply.lines, &details) }
            replies[number] = reply
        } else {
            freeLines.append(line)
        }
    }
}
