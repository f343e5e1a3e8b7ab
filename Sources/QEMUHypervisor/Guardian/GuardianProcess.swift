import Glibc
import HypervisorInterface

/// The guardian: a process that outlives Vigil and takes everything back when Vigil dies.
///
/// It holds duplicates of Vigil's connections, so that no waiting client slips in between, and acts when
/// the channel from Vigil closes (death) or falls silent (stopped, or stuck).
public enum GuardianProcess {
    /// How long Vigil may give no sign of life.
    public static let patience = Duration.milliseconds(700)
    /// A wait that lasted so much longer than asked for means that the whole host stood still.
    static let hiccup = Duration.milliseconds(50)

    /// Runs the guardian on the descriptors it inherited.
    /// - Returns: the process's exit code.
    public static func run() -> Int32 {
        signal(SIGPIPE, SIG_IGN)
        // A terminal's signals are not for the guardian, whose end would leave the guest unguarded.
        for number in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] { signal(number, SIG_IGN) }
        let channel = GuardianLink.Inherited.channel
        let parent = getppid()
        var word = GuardianLink.Word.ready
        // Where this fails Vigil is dead already, which the first look at the channel will tell.
        _ = send(channel, &word, 1, Int32(MSG_NOSIGNAL))

        var state = GuardedState()
        switch watch(channel, &state) {
        case .farewell:
            return 0
        case .died:
            let (report, code) = act(state)
            say("Vigil (pid \(parent)) died; \(report)")
            return code
        case .silent:
            // Whatever it does next, it must not do it while two hold the connections.
            let fence = Fence(parent)
            word = GuardianLink.Word.tookOver
            _ = send(channel, &word, 1, Int32(MSG_NOSIGNAL))
            let (report, code) = act(state)
            shutdown(GuardianLink.Inherited.debug, Int32(SHUT_RDWR))
            shutdown(GuardianLink.Inherited.qmp, Int32(SHUT_RDWR))
            // Said only now: whoever reads it may let Vigil go on at once.
            say("Vigil (pid \(parent)) gave no sign of life; \(report)")
            fence.lift()
            return code
        }
    }

    private enum End { case farewell, died, silent }

    /// Takes messages until there is reason to act, or none to stay.
    private static func watch(_ channel: Int32, _ state: inout GuardedState) -> End {
        var buffer = [UInt8](repeating: 0, count: GuardianMessage.maximumLength)
        while true {
            let end = ContinuousClock.now + patience
            if !Socket.waitForInput([channel], until: end)[0] {
                // Then Vigil, too, may only just have got to run again.
                guard ContinuousClock.now - end > hiccup,
                    Socket.waitForInput([channel], until: .now + Pulse.interval)[0]
                else { return .silent }
            }
            let count = recv(channel, &buffer, buffer.count, 0)
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { return .died }
            guard let message = GuardianMessage(bytes: Array(buffer[..<count])) else { continue }
            if message == .farewell { return .farewell }
            state.apply(message)
        }
    }

    /// Takes everything back.
    /// - Returns: what was done, for people, and the exit code.
    private static func act(_ state: GuardedState) -> (report: String, code: Int32) {
        let start = ContinuousClock.now
        do {
            let recovery = GuardianRecovery(
                state: state, qmp: dup(GuardianLink.Inherited.qmp), debug: dup(GuardianLink.Inherited.debug))
            let report = try recovery.run()
            let (seconds, attoseconds) = (ContinuousClock.now - start).components
            return ("\(report) (\(seconds * 1000 + attoseconds / 1_000_000_000_000_000) ms)", 0)
        } catch {
            return ("the guest could not be released: \(error)", 1)
        }
    }

    private static func say(_ text: String) {
        let line = "vigil guardian: \(text)\n"
        _ = write(2, line, line.utf8.count)
    }

    /// Keeps a silent Vigil from acting while the guardian does.
    private struct Fence {
        let parent: pid_t
        private let wasStopped: Bool

        init(_ parent: pid_t) {
            self.parent = parent
            wasStopped = Self.state(of: parent) == "T"
            // Only while it is still our parent: a dead one's number may be another process's.
            guard !wasStopped, getppid() == parent, kill(parent, SIGSTOP) == 0 else { return }
            while getppid() == parent, let state = Self.state(of: parent), state != "T", state != "Z" { usleep(200) }
        }

        func lift() {
            if !wasStopped && getppid() == parent { kill(parent, SIGCONT) }
        }

        /// The state letter of a process (proc(5)).
        private static func state(of pid: pid_t) -> Character? {
            guard let file = fopen("/proc/\(pid)/stat", "r") else { return nil }
            defer { fclose(file) }
            var line = [UInt8](repeating: 0, count: 512)
            let count = fread(&line, 1, line.count, file)
            // The name, in parentheses, may hold anything: the state follows the last one.
            guard let close = line[..<count].lastIndex(of: UInt8(ascii: ")")), close + 2 < count else { return nil }
            return Character(UnicodeScalar(line[close + 2]))
        }
    }
}
