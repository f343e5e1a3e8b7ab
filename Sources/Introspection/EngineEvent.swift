import Agents
import GuestMemory
import HypervisorInterface
import PowerTransitions
import WindowsGuest

/// What the engine reports, in the order in which it happens.
public enum EngineEvent {
    /// The guest's kernel is not there yet, and why.
    case waiting(reason: String)
    case attached(Attachment)
    /// The guest that was attached to had hibernated in another machine. Right after `attached`.
    case awoken(Awakening)
    case power(PowerEvent)
    /// The command that a held caller waits for runs.
    case commandStarted(RequestID, processID: Int32)
    /// That command has ended, or could not be started; with the time since its start.
    case commandEnded(RequestID, CommandEnd, duration: Duration)
    case agent(AgentEvent)
    case detached(Detachment)
    /// Something did not work that the session does not depend on. A sentence for the user.
    case warning(String)
}

/// What intercepts the power function.
public enum Mechanism: Equatable, Sendable {
    /// Nothing but an execution breakpoint on its entry.
    case patchless
    /// A jump over so many of its first bytes, to a handler at whose start the breakpoint stands.
    case inlineDetour(bytes: Int, handler: GuestVirtualAddress)
}

/// What was found and armed.
public struct Attachment: Sendable {
    /// The name of the session: `EngineOptions.session`.
    public var session: String
    public var machine: MachineIdentity
    public var kernel: KernelIdentity
    public var powerFunction: PowerFunction
    /// What intercepts the power function.
    public var mechanism: Mechanism
    public var memoryAccess: String
    public var runState: RunState
    /// How long the guest stood still for it.
    public var paused: Duration
}

/// How the engine left.
public struct Detachment: Sendable {
    public enum Reason: Equatable, Sendable {
        /// Whoever embeds the engine asked for it.
        case asked
        /// The machine powered off, or was told to end.
        case machineEnded
        /// The machine's process ended, or closed its connections, without a word.
        case machineLost(String)
    }

    public var reason: Reason
    public var calls: CallCounts
    public var effects: EffectCounts
    /// Callers that were still waiting when Vigil left. They go on when the guest runs: out of the handler by
    /// themselves, or by the guardian, which stays for those in delays.
    public var callersLeft: Int
    /// Why the inline detour's handler is still in the kernel's slack, where it is. Nothing leads there.
    public var handlerLeft: String?
    /// Requests whose outcome was not seen.
    public var openTransitions: Int
}
