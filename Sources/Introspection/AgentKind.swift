import Agents
import WindowsGuest

/// The agents that Vigil has.
public enum AgentKind: String, CaseIterable, Hashable, Sendable {
    /// A thread of the guest's own that says when it last ran. Changes nothing of the kernel's.
    case heartbeat
    /// Tells of changes of the translations that are protected, without a stop of the guest for the others. Replaces
    /// the kernel's instructions that write page tables.
    case pageTableFilter = "pt-filter"

    /// - Throws: where its image is missing.
    func makeProgram(_ kernel: WindowsKernel) throws(AgentError) -> any AgentProgram {
        switch self {
        case .heartbeat: try HeartbeatAgent()
        case .pageTableFilter: try PageTableFilterAgent(of: kernel)
        }
    }
}
