import Foundation
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

    private let process = Process()
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

    init(_ arguments: [String], environment: [String: String]? = nil) throws {
        process.executableURL = URL(fileURLWithPath: try Self.path)
        process.arguments = arguments
        if let environment { process.environment = environment }
        let (out, err) = (Pipe(), Pipe())
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = out
        process.standardError = err
        out.fileHandleForReading.readabilityHandler = { [output] handle in
            let data = handle.availableData
            if data.isEmpty { handle.readabilityHandler = nil }
            output.append(data)
        }
        err.fileHandleForReading.readabilityHandler = { [errors] handle in
            let data = handle.availableData
            if data.isEmpty { handle.readabilityHandler = nil }
            errors.append(data)
        }
        try process.run()
    }

    deinit {
        if process.isRunning {
            send(SIGCONT)
            send(SIGKILL)
            process.waitUntilExit()
        }
    }

    var isRunning: Bool { process.isRunning }
    var processID: pid_t { process.processIdentifier }
    var outputText: String { output.text }
    var errorText: String { errors.text }

    func send(_ signal: Int32) { kill(process.processIdentifier, signal) }

    /// Waits for the next event of a name; earlier ones are passed over.
    func event(_ name: String, sourceLocation: SourceLocation = #_sourceLocation) throws -> VigilEvent {
        let found = output.next { line in VigilEvent(line).flatMap { $0.name == name ? $0 : nil } }
        return try #require(
            found, "no event \(name) from vigil, which said:\n\(outputText)\(errorText)", sourceLocation: sourceLocation)
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
        process.waitUntilExit()
        output.waitForEnd()
        errors.waitForEnd()
        return process.terminationReason == .exit ? process.terminationStatus : 128 + process.terminationStatus
    }

    /// Runs vigil to its end.
    static func run(_ arguments: String..., environment: [String: String]? = nil) throws -> (
        status: Int32, output: String, errors: String
    ) {
        let vigil = try VigilProcess(arguments, environment: environment)
        let status = vigil.exitStatus()
        return (status, vigil.outputText, vigil.errorText)
    }
}
