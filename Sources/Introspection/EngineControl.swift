import Glibc
import Protections
import Synchronization

/// A change of what the engine does, while it runs.
public enum Wish: Equatable, Sendable {
    /// An agent shall be in the guest, or not.
    case agent(AgentKind, Bool)
    /// These are to be protected, or not; `userCode` for processes with these names.
    case protect(Set<ProtectionKind>, processes: [String], Bool)
    /// The host says what it is about to do with the machine, or has done.
    case notice(PowerNotice)
}

/// What a host that knows it before the guest does tells of the machine's power.
public enum PowerNotice: String, CaseIterable, Equatable, Sendable {
    /// The machine is about to be put to sleep, saved, or moved.
    case sleep
    /// It is back.
    case resume
    /// It is about to be shut down.
    case shutDown = "shut-down"
    /// It is about to be ended.
    case terminating
}

/// Takes wishes from any thread to an engine that runs.
public final class EngineControl: Sendable {
    private let wishes = Mutex<[Wish]>([])
    /// Can be read when there are wishes.
    let descriptor: Int32
    private let writeEnd: Int32

    public init() {
        var ends: [Int32] = [-1, -1]
        _ = pipe(&ends)
        for end in ends {
            _ = fcntl(end, F_SETFL, O_NONBLOCK)
            _ = fcntl(end, F_SETFD, FD_CLOEXEC)
        }
        (descriptor, writeEnd) = (ends[0], ends[1])
    }

    deinit {
        close(descriptor)
        close(writeEnd)
    }

    /// Hands a wish to the engine. What came of it is among its events.
    public func post(_ wish: Wish) {
        wishes.withLock { $0.append(wish) }
        // A full pipe says as well that there is something to take.
        var byte: UInt8 = 1
        _ = write(writeEnd, &byte, 1)
    }

    func take() -> [Wish] {
        var bytes = [UInt8](repeating: 0, count: 256)
        while read(descriptor, &bytes, bytes.count) == bytes.count {}
        return wishes.withLock { list in
            defer { list = [] }
            return list
        }
    }
}
