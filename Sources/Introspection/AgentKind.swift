import Agents
import GuestMemory
import HypervisorInterface
import WindowsGuest

/// The agents that Vigil has.
public enum AgentKind: String, CaseIterable, Hashable, Sendable {
    /// A thread of the guest's own that says when it last ran. Changes nothing of the kernel's.
    case heartbeat
    /// Tells of changes of the translations that are protected, without a stop of the guest for the others. Replaces
    /// the kernel's instructions that write page tables.
    case pageTableFilter = "pt-filter"

    /// Agents are code for 64-bit kernels, as the original's are.
    func isFor(_ kernel: WindowsKernel) -> Bool { kernel.architecture == .x64 }

    /// - Throws: where its image is missing, or is for other kernels.
    func makeProgram(_ kernel: WindowsKernel) throws(AgentError) -> any AgentProgram {
        guard isFor(kernel) else {
            throw .unsupported("the agent \(rawValue) is for 64-bit kernels, and this guest's has 32 bits")
        }
        return switch self {
        case .heartbeat: try HeartbeatAgent()
        case .pageTableFilter: try PageTableFilterAgent(of: kernel)
        }
    }

    /// Whether it changes the kernel's code, which needs `EngineOptions.allowVisiblePatches`.
    public var patchesCode: Bool { self == .pageTableFilter }

    /// What keeps the agent out of a guest, as far as that can be known from looking; nil where nothing does.
    public func obstacle(in survey: GuestSurvey, of machine: any VirtualMachine) -> String? {
        do {
            _ = try AgentFunctions(of: survey.kernel)
            let program = try makeProgram(survey.kernel)
            _ = try survey.serviceTable.get()
            if self == .pageTableFilter, let gate = program.image.gate {
                let handler = try InterruptGateCheck.handler(
                    of: PageTableWriter.vector, on: try machine.processorTables(), in: survey.kernel)
                _ = try GatePatch(
                    handler: handler, target: handler + UInt64(gate.lowerBound), in: survey.kernel.memory)
            }
            return nil
        } catch {
            return "\(error)"
        }
    }
}
