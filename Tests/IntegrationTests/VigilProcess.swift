import BundledGuest
import Foundation
import HostProcesses
import Testing

/// A line of JSON that a vigil process wrote.
struct VigilEvent: CustomStringConvertible {
    let members: [String: any Sendable]
    let text: String

    init?(_ line: String) {
        guard let object = try? JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: any Sendable] else {
            return nil
        }
        members = object
        text = line
    }

    var name: String { string("event") ?? "" }
    var description: String { text }

    func string(_ member: String) -> String? { members[member] as? String }
    func int(_ member: String) -> Int? { members[member] as? Int }
    func bool(_ member: String) -> Bool? { members[member] as? Bool }
    func strings(_ member: String) -> [String]? { members[member] as? [String] }
}

/// The built `vigil`, run as a user runs it.
final class VigilProcess {
    /// Lines that arrive on a pipe, taken by whoever waits for them.
    private final class Lines: @unchecked Sendable {
        private let condition = NSCondition()
        private var waiting: [String] = []
        private var partial = Data()
        private var all = ""
        private var ended = false

        func append(_ data: Data) {
            condition.lock()
            if data.isEmpty { ended = true }
            partial += data
            while let end = partial.firstIndex(of: 10) {
                let line = String(decoding: partial[partial.startIndex..<end], as: UTF8.self)
                waiting.append(line)
                all += line + "\n"
                partial.removeSubrange(partial.startIndex...end)
            }
            condition.broadcast()
            condition.unlock()
        }

        var text: String {
            condition.lock()
            defer { condition.unlock() }
            return all
        }

        /// The first line that `pick` wants; those before it are dropped. Nil at the end, or after a minute.
        func next<Value>(_ pick: (String) -> Value?) -> Value? {
            let deadline = Date().addingTimeInterval(60)
            condition.lock()
            defer { condition.unlock() }
            while true {
                while !waiting.isEmpty {
                    if let value = pick(waiting.removeFirst()) { return value }
                }
                if ended || !condition.wait(until: deadline) { return nil }
            }
        }

        func waitForEnd() {
            let deadline = Date().addingTimeInterval(60)
            condition.lock()
            while !ended && condition.wait(until: deadline) {}
            condition.unlock()
        }
    }

    private let process: DependentProcess
    private let output = Lines()
    private let errors = Lines()

    /// The executable, beside the tests' own.
    static var path: String {
        get throws {
            let own = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
            let path = URL(fileURLWithPath: own).deletingLastPathComponent().appendingPathComponent("vigil").path
            try #require(FileManager.default.isExecutableFile(atPath: path), "vigil was not built beside the tests")
            return path
        }
    }

    /// Instead of the user's own folder for state: set for every process that tests start.
    private static let stateHome: String = {
        let folder = "/tmp/vigil-state-\(getpid())"
        setenv("XDG_STATE_HOME", folder, 1)
        atexit { try? FileManager.default.removeItem(atPath: VigilProcess.stateHome) }
        return folder
    }()

    /// - Parameter program: run instead of vigil itself, with vigil's path and arguments as its own.
    init(_ arguments: [String], by program: [String] = [], input: Pipe? = nil) throws {
        _ = Self.stateHome
        let command = try program + [Self.path] + arguments
        func pipe() throws -> (read: Int32, write: Int32) {
            var ends: [Int32] = [-1, -1]
            try #require(Glibc.pipe(&ends) == 0)
            for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
            return (ends[0], ends[1])
        }
        let (out, err) = (try pipe(), try pipe())
        process = try DependentProcess(
            path: command[0], arguments: Array(command.dropFirst()),
            input: input?.fileHandleForReading.fileDescriptor ?? -1, output: out.write, errors: err.write)
        close(out.write)
        close(err.write)
        for (end, lines) in [(out.read, output), (err.read, errors)] {
            let reader = Thread {
                var chunk = [UInt8](repeating: 0, count: 4096)
                while true {
                    let count = read(end, &chunk, chunk.count)
                    lines.append(Data(chunk[..<max(0, count)]))
                    if count <= 0 { break }
                }
                close(end)
            }
            reader.start()
        }
    }

    var isRunning: Bool { process.isRunning }
    var processID: pid_t { process.processID }
    var outputText: String { output.text }
    var errorText: String { errors.text }

    /// The processes that it started.
    var children: [pid_t] {
        get throws {
            let path = "/proc/\(processID)/task/\(processID)/children"
            return try String(contentsOfFile: path, encoding: .utf8).split(separator: " ").compactMap { pid_t($0) }
        }
    }

    func send(_ signal: Int32) { kill(process.processID, signal) }

    /// Waits for the next event of a name; earlier ones are passed over.
    func event(_ name: String, sourceLocation: SourceLocation = #_sourceLocation) throws -> VigilEvent {
        let found = output.next { line in VigilEvent(line).flatMap { $0.name == name ? $0 : nil } }
        return try #require(
            found, "no event \(name) from vigil, which said:\n\(outputText)\(errorText)", sourceLocation: sourceLocation
        )
    }

    /// Waits for a line on standard error that contains `text`.
    func errorLine(containing text: String, sourceLocation: SourceLocation = #_sourceLocation) throws -> String {
        let found = errors.next { $0.contains(text) ? $0 : nil }
        return try #require(
            found, "no \"\(text)\" from vigil, which said:\n\(outputText)\(errorText)", sourceLocation: sourceLocation)
    }

    /// Waits for the process to end.
    /// - Returns: its exit status; that of a process ended by a signal is the signal's number plus 128.
    func exitStatus() -> Int32 {
        let status = process.waitForExit()
        output.waitForEnd()
        errors.waitForEnd()
        return status & 0x7f == 0 ? status >> 8 & 0xff : 128 + (status & 0x7f)
    }

    /// Runs vigil to its end.
    static func run(
        _ arguments: String..., by program: [String] = []
    ) throws -> (status: Int32, output: String, errors: String) {
        let vigil = try VigilProcess(arguments, by: program)
        let status = vigil.exitStatus()
        return (status, vigil.outputText, vigil.errorText)
    }
}
