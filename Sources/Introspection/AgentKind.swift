import Agents

/// The agents that Vigil has.
public enum AgentKind: String, CaseIterable, Hashable, Sendable {
    /// A thread of the guest's own that says when it last ran. Changes nothing of the kernel's.
    case heartbeat

    /// - Throws: where its image is missing.
    func makeProgram() throws(AgentError) -> any AgentProgram {
        switch self {
        case .heartbeat: try HeartbeatAgent()
        }
    }
}
