import CLinux
import Foundation
import Glibc
import Synchronization

/// Why a program could not be started, in words.
public struct ProcessStartError: Error, Equatable, Sendable, CustomStringConvertible {
    public let description: String

    public init(_ description: String) { self.description = description }
}

/// A program that ends with this process, whatever this process dies of.
public final class DependentProcess: Sendable {
    public let processID: pid_t
    private let status = Mutex<Int32?>(nil)

    /// The kernel ties the program's life to the thread that started it: this one lives as long as the process.
    private static let starter = StarterThread()

    /// Starts a program, as the leader of a process group of its own.
    /// - Parameters:
    ///   - environment: its whole environment; nil for this process's.
    ///   - input: its standard input; -1 for none.
    ///   - output: where its standard output goes.
    ///   - errors: where its standard error goes.
    ///   - inherited: becomes the program's descriptor 3, unless it is -1.
    public init(
        path: String, arguments: [String], environment: [String: String]? = nil, input: Int32 = -1,
        output: Int32, errors: Int32, inherited: Int32 = -1
    ) throws(ProcessStartError) {
        let pid = Self.starter.run {
            var pointers = Self.pointers([path] + arguments)
            var variables = Self.pointers((environment ?? [:]).map { "\($0.key)=\($0.value)" })
            defer { for pointer in pointers + variables { free(pointer) } }
            return variables.withUnsafeMutableBufferPointer { variables in
                clinux_spawn_dependent(
                    path, &pointers, environment == nil ? nil : variables.baseAddress, input, output, errors, inherited)
            }
        }
        guard pid > 0 else { throw ProcessStartError("cannot start \(path): \(String(cString: strerror(-pid)))") }
        processID = pid
    }

    deinit { kill() }

    /// What execve(2) takes; each is freed by the caller.
    private static func pointers(_ texts: [String]) -> [UnsafeMutablePointer<CChar>?] {
        texts.map { strdup($0) } + [nil]
    }

    /// Whether it still runs.
    public var isRunning: Bool { wait(hang: false) == nil }

    /// The wait status (waitpid(2)) with which it ended; nil while it runs.
    public var waitStatus: Int32? { wait(hang: false) }

    /// A descriptor that can be read once it has ended. The caller closes it.
    public func openDescriptor() throws(ProcessStartError) -> Int32 {
        let descriptor = clinux_process_descriptor(processID)
        guard descriptor >= 0 else {
            throw ProcessStartError("cannot watch a process: \(String(cString: strerror(-descriptor)))")
        }
        return descriptor
    }

    /// Waits for its end.
    /// - Returns: the wait status (waitpid(2)).
    @discardableResult
    public func waitForExit() -> Int32 { wait(hang: true) ?? 0 }

    /// Waits for its end, for so long.
    /// - Returns: the exit status, or nil where it still runs or was ended by a signal.
    public func exitStatus(within timeout: Duration) -> Int32? {
        guard let status = waitForExit(within: timeout), status & 0x7f == 0 else { return nil }
        return status >> 8 & 0xff
    }

    /// Waits for its end, for so long.
    /// - Returns: the wait status, or nil where it still runs.
    public func waitForExit(within timeout: Duration) -> Int32? {
        let descriptor = clinux_process_descriptor(processID)
        defer { if descriptor >= 0 { close(descriptor) } }
        if descriptor >= 0 && isRunning {
            var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            poll(
                &entry, 1,
                Int32(
                    clamping: timeout.components.seconds * 1000 + timeout.components.attoseconds / 1_000_000_000_000_000
                ))
        }
        return wait(hang: false)
    }

    /// Ends it.
    public func kill() {
        guard isRunning else { return }
        Glibc.kill(processID, SIGKILL)
        waitForExit()
    }

    private func wait(hang: Bool) -> Int32? {
        status.withLock { known in
            if let known { return known }
            var result: Int32 = 0
            while true {
                let pid = waitpid(processID, &result, hang ? 0 : WNOHANG)
                if pid == processID || (pid < 0 && errno == ECHILD) {
                    known = result
                    return result
                }
                if pid < 0 && errno == EINTR { continue }
                return nil
            }
        }
    }
}

/// A thread that never ends and does what it is given, one thing at a time.
private final class StarterThread: @unchecked Sendable {
    private let condition = NSCondition()
    private var work: (() -> Void)?

    init() {
        let thread = Thread { [self] in
            while true {
                condition.lock()
                while work == nil { condition.wait() }
                let next = work
                condition.unlock()
                next?()
                condition.lock()
                work = nil
                condition.broadcast()
                condition.unlock()
            }
        }
        thread.start()
    }

    func run(_ body: @escaping () -> pid_t) -> pid_t {
        var result: pid_t = -1
        condition.lock()
        while work != nil { condition.wait() }
        work = { result = body() }
        condition.broadcast()
        while work != nil { condition.wait() }
        condition.unlock()
        return result
    }
}
