import HypervisorInterface
import Introspection
import PowerTransitions
import WindowsGuest

extension RunState {
    /// As scripts see it.
    var name: String {
        switch self {
        case .running: "running"
        case .paused: "paused"
        case .stoppedByDebugger: "debug"
        case .suspended: "suspended"
        case .notStarted: "not-started"
        case .poweredOff: "powered-off"
        case .guestPanicked: "guest-panicked"
        case .other(let name): name
        }
    }
}

extension Mechanism {
    /// As scripts see it.
    var name: String {
        switch self {
        case .patchless: "patchless"
        case .inlineDetour: "inline-detour"
        }
    }

    /// As people read it.
    var words: String {
        switch self {
        case .patchless: "patchless: an execution breakpoint on the function's entry"
        case .inlineDetour(let bytes, let handler):
            "an inline detour: a jump over \(bytes) of the function's bytes to \(handler), and an execution breakpoint there"
        }
    }
}

extension HostEvent {
    /// As scripts see it.
    var name: String {
        switch self {
        case .suspended: "suspended"
        case .wokeUp: "woke-up"
        case .suspendedToDisk: "suspended-to-disk"
        case .reset: "reset"
        case .poweredOff: "powered-off"
        case .powerButtonPressed: "power-button"
        case .guestPanicked: "guest-panicked"
        case .stoppedByOperator: "stopped"
        case .startedByOperator: "started"
        }
    }

    /// As people read it.
    var words: String {
        switch self {
        case .suspended: "the guest went to sleep"
        case .wokeUp: "the guest woke up"
        case .suspendedToDisk: "the guest hibernated"
        case .reset(byGuest: true): "the guest reset the machine"
        case .reset(byGuest: false): "the machine was reset from outside"
        case .poweredOff(byGuest: true): "the guest powered off"
        case .poweredOff(byGuest: false): "the machine was ended from outside"
        case .powerButtonPressed: "the power button was pressed"
        case .guestPanicked: "the guest crashed"
        case .stoppedByOperator: "the operator stopped the machine"
        case .startedByOperator: "the operator started the machine"
        }
    }
}

extension BugCheckFunction.Way {
    var words: String {
        switch self {
        case .commonCallee: "what KeBugCheckEx and KeBugCheck both call with the code"
        case .pattern: "a byte pattern"
        }
    }
}

extension PowerFunction.Way {
    var words: String {
        switch self {
        case .serviceTable: "its system-call number and the service table"
        case .pattern: "a byte pattern"
        }
    }
}

extension CommandEnd {
    var words: String {
        switch self {
        case .exited(code: 0): "the command has ended"
        case .exited(let code): "the command failed with exit code \(code)"
        case .signalled(let number): "the command was ended by signal \(number)"
        case .notStarted(let reason): "the command could not be started: \(reason)"
        }
    }
}

extension ReleaseReason {
    var words: String {
        switch self {
        case .withdrawn: "everything that had to leave the guest has left"
        case .answeredSlowly: "it was answered late, after refusals in a row"
        case .holdOver: "the hold is over"
        case .deadline: "Vigil's deadline for holds has passed"
        case .commandEnded: "the command has ended"
        case .commandFailed: "the command failed"
        case .holdLimit: "the command took longer than --hold-limit allows"
        case .leaving: "Vigil is leaving"
        case .cannotWait: "it came back early and could not wait on"
        case .leaseExpired: "the guest saw no sign of life of Vigil and went on by itself"
        }
    }
}
