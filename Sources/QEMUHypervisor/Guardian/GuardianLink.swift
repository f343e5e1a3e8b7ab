import CLinux
import Glibc
import HypervisorInterface

/// Vigil's end of the channel to its guardian, and the guardian's birth.
final class GuardianLink: EffectWitness {
    /// The descriptors that a guardian finds its connections at.
    enum Inherited {
        static let qmp: Int32 = 3
        static let debug: Int32 = 4
        static let channel: Int32 = 5
    }

    /// What the guardian says to Vigil, one byte each.
    enum Word {
        static let ready = UInt8(ascii: "r")
        static let tookOver = UInt8(ascii: "t")
    }

    let descriptor: Int32
    let processID: pid_t
    private(set) var hasTakenOver = false

    /// Starts a guardian that shares `qmp` and `debug`, and waits until it is ready.
    init(command: [String], qmp: Int32, debug: Int32) throws(HypervisorError) {
        var pair: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue), 0, &pair) == 0 else {
            throw .unsupported("cannot make the guardian's channel: \(String(cString: strerror(errno)))")
        }
        let theirs = pair[1]
        defer { close(theirs) }
        do {
            processID = try Self.spawn(command, qmp: qmp, debug: debug, channel: theirs)
        } catch {
            close(pair[0])
            throw error
        }
        descriptor = pair[0]
        _ = fcntl(descriptor, F_SETFL, O_NONBLOCK)

        let ready = Socket.waitForInput([descriptor], until: ContinuousClock.now + .seconds(10))
        var word: UInt8 = 0
        guard ready[0], recv(descriptor, &word, 1, 0) == 1, word == Word.ready else {
            kill(processID, SIGKILL)
            reap()
            throw .unsupported("the guardian process did not start (\(command.joined(separator: " ")))")
        }
    }

    deinit { close(descriptor) }

    private static func spawn(
        _ command: [String], qmp: Int32, debug: Int32, channel: Int32
    ) throws(HypervisorError) -> pid_t {
        // Copies above the numbers that the child wants, so that no copy overwrites a source.
        let sources = [qmp, debug, channel].map { fcntl($0, F_DUPFD_CLOEXEC, 16) }
        defer { for source in sources where source >= 0 { close(source) } }

        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0)
        posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_RDWR, 0)
        let targets = [Inherited.qmp, Inherited.debug, Inherited.channel]
        for (source, target) in zip(sources, targets) { posix_spawn_file_actions_adddup2(&actions, source, target) }

        // A session of its own: the signal that ends Vigil from its terminal must not end the guardian.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        posix_spawnattr_setflags(&attributes, clinux_spawn_new_session() | Int16(POSIX_SPAWN_SETSIGMASK))
        var mask = sigset_t()
        sigemptyset(&mask)
        posix_spawnattr_setsigmask(&attributes, &mask)

        var arguments: [UnsafeMutablePointer<CChar>?] = command.map { strdup($0) } + [nil]
        defer { for argument in arguments { free(argument) } }
        var pid: pid_t = 0
        let status = posix_spawnp(&pid, command[0], &actions, &attributes, &arguments, environ)
        guard status == 0 else {
            throw .unsupported("cannot start the guardian \(command[0]): \(String(cString: strerror(status)))")
        }
        return pid
    }

    private func send(_ message: GuardianMessage) throws(HypervisorError) {
        let bytes = message.bytes
        while Glibc.send(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL)) < 0 {
            switch errno {
            case EINTR: continue
            case EAGAIN:
                // The channel is full: the guardian does not read. Wait for it, it is not far behind.
                var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                if poll(&entry, 1, 5000) > 0 { continue }
                throw .guardianLost
            default:
                try check()
                throw .guardianLost
            }
        }
    }

    func willPerform(_ effect: Effect) throws(HypervisorError) {
        // Nothing is changed in the guest any more once the guardian has put it in order.
        try check()
        if let message = GuardianMessage(effect) { try send(message) }
    }

    /// Says that Vigil is alive.
    func beat() throws(HypervisorError) { try send(.beat) }

    /// Takes the guardian's word, if it said something.
    func check() throws(HypervisorError) {
        if hasTakenOver { throw .takenOver }
        var word: UInt8 = 0
        var count = recv(descriptor, &word, 1, Int32(MSG_DONTWAIT))
        // A guardian that ended without having read everything is reported first, its last word after that.
        if count < 0 && errno == ECONNRESET { count = recv(descriptor, &word, 1, Int32(MSG_DONTWAIT)) }
        switch count {
        case 1 where word == Word.tookOver:
            hasTakenOver = true
            throw .takenOver
        case 0: throw .guardianLost
        default: break
        }
    }

    /// Ends the guardian: Vigil leaves in good order.
    func dismiss() {
        try? send(.farewell)
        reap()
    }

    /// How long a handing-over is waited for. The guardian may have to wait itself, for a guest that stands.
    private static let handOverTimeout = Duration.seconds(2)

    /// Lets the guardian take everything back at once, as if Vigil had died, and waits until it has, unless
    /// that takes long.
    func handOver() {
        shutdown(descriptor, Int32(SHUT_WR))
        // Its end closes with it.
        if Socket.waitForInput([descriptor], until: .now + Self.handOverTimeout)[0] { reap() }
    }

    private func reap() {
        var status: Int32 = 0
        while waitpid(processID, &status, 0) < 0 && errno == EINTR {}
    }
}
