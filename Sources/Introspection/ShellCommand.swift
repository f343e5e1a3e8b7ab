import Foundation
import Glibc
import HostProcesses
import HypervisorInterface

/// A command that a shell runs, with a text on its standard input.
///
/// It leads a process group of its own. Its standard output and error go to this process's standard error.
public final class ShellCommand: HoldCommand {
    public let endDescriptor: Int32
    private let process: DependentProcess

    /// Starts a command.
    /// - Parameters:
    ///   - command: what the shell is given after `-c`.
    ///   - input: all that can be read on its standard input; a pipe must hold it (64 KiB).
    ///   - environment: its whole environment.
    public init(
        _ command: String, input: String, environment: [String: String], shell: String = "/bin/sh"
    ) throws(ProcessStartError) {
        let inputEnd = try Self.pipe(holding: input)
        defer { close(inputEnd) }
        process = try DependentProcess(
            path: shell, arguments: ["-c", command], environment: environment, input: inputEnd,
            output: STDERR_FILENO, errors: STDERR_FILENO)
        endDescriptor = try process.openDescriptor()
    }

    deinit { close(endDescriptor) }

    /// A pipe's end that `text` can be read from, and then its end.
    private static func pipe(holding text: String) throws(ProcessStartError) -> Int32 {
        var ends: [Int32] = [-1, -1]
        guard Glibc.pipe(&ends) == 0 else {
            throw ProcessStartError("cannot make a pipe: \(String(cString: strerror(errno)))")
        }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        _ = fcntl(ends[1], F_SETFL, O_NONBLOCK)
        defer { close(ends[1]) }
        let bytes = Array(text.utf8)
        guard write(ends[1], bytes, bytes.count) == bytes.count else {
            close(ends[0])
            throw ProcessStartError("its input of \(bytes.count) bytes does not fit into a pipe")
        }
        return ends[0]
    }

    public var processID: Int32 { process.processID }

    public var end: CommandEnd? {
        guard let status = process.waitStatus else { return nil }
        let signal = status & 0x7f
        return signal == 0 ? .exited(code: status >> 8 & 0xff) : .signalled(signal)
    }

    public var hasLeftovers: Bool { end != nil && kill(-processID, 0) == 0 && Self.isAlive(group: processID) }

    /// Whether a process of a group still runs. Dead ones stay in their group until somebody reaps them, which may
    /// take long in a container.
    private static func isAlive(group: Int32) -> Bool {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return names.contains { name in
            guard Int32(name) != nil, let text = try? String(contentsOfFile: "/proc/\(name)/stat", encoding: .utf8),
                let nameEnd = text.lastIndex(of: ")")
            else { return false }
            // After the name: state, parent, group.
            let fields = text[nameEnd...].split(separator: " ").dropFirst().prefix(3)
            return fields.first != "Z" && fields.last == "\(group)"
        }
    }

    public func send(_ signal: Int32) { kill(-processID, signal) }

    public func waitForEnd(until deadline: Deadline) {
        _ = process.waitForExit(within: max(.zero, deadline - ContinuousClock.now))
    }
}
