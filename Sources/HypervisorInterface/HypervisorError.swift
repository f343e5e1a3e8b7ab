/// What can go wrong between Vigil and a hypervisor. Each description is a sentence for the user.
public enum HypervisorError: Error, Equatable, Sendable {
    /// Nothing answers at the target, or it may not be used.
    case cannotConnect(target: String, reason: String)
    /// Nobody is there to be reached, yet or any more: what `cannotConnect` says, and time may mend.
    case absent(target: String, reason: String)
    /// A file is not there, or may not be read.
    case cannotOpen(path: String, reason: String)
    /// A file is no memory image that can be used.
    case unusableImage(path: String, reason: String)
    /// A target that can only be looked at.
    case notControllable(target: String)
    /// The control socket takes one client, and has one.
    case heldByAnotherClient(target: String)
    /// A debugger, or another Vigil, has the debug connection.
    case debuggerBusy(label: String)
    /// The hypervisor lacks something that was asked of it.
    case unsupported(String)
    /// The hypervisor refused a command.
    case commandFailed(command: String, reason: String)
    /// The hypervisor answered something that its protocol does not allow.
    case unexpectedAnswer(String)
    /// No answer came in time.
    case timedOut(waitingFor: String)
    /// The hypervisor ended, or closed the connection.
    case gone(String)
    /// The guardian took the connection over, because Vigil gave no sign of life.
    case takenOver
    /// The guardian ended before Vigil did.
    case guardianLost
}

extension HypervisorError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .cannotConnect(let target, let reason), .absent(let target, let reason):
            "cannot connect to \(target): \(reason)"
        case .cannotOpen(let path, let reason): "cannot open \(path): \(reason)"
        case .unusableImage(let path, let reason): "\(path) cannot be used as a memory image: \(reason)"
        case .notControllable(let target):
            "\(target) is the path of a memory image, which can only be looked at (vigil inspect): to attach, name a "
                + "machine that runs (qemu:PATH)"
        case .heldByAnotherClient(let target):
            "\(target) accepts the connection but does not greet: another client (libvirt, or another Vigil) "
                + "holds this socket; QEMU serves one client at a time on each QMP socket, "
                + "so give Vigil one of its own (-qmp unix:PATH,server=on,wait=off)"
        case .debuggerBusy(let label):
            "this QEMU already has a debug connection (chardev \"\(label)\"); taking it over would throw its "
                + "debugger out, so Vigil does not: end the debugger, or start QEMU without -s and -gdb"
        case .unsupported(let what): what
        case .commandFailed(let command, let reason): "QEMU refused \(command): \(reason)"
        case .unexpectedAnswer(let what): "the hypervisor answered something unexpected: \(what)"
        case .timedOut(let what): "no answer in time, waiting for \(what)"
        case .gone(let what): what
        case .takenOver:
            "the guardian took over, because Vigil gave no sign of life for too long; "
                + "nothing of Vigil is left in the guest"
        case .guardianLost: "the guardian process ended unexpectedly, so Vigil left the guest"
        }
    }
}
