import Detours
import GuestMemory
import HypervisorInterface
import WindowsGuest

/// Why an agent is not in the guest, or not out of it. Each description is a sentence's end.
public enum AgentError: Error, Sendable {
    case hypervisor(HypervisorError)
    case memory(MemoryError, doing: String)
    case malformedImage(String)
    /// A function of the guest's that agents need.
    case discovery(DiscoveryError)
    /// It changes code where the guest can see that, and the user has not allowed it.
    case visiblePatches(agent: String)
    /// The guest has no memory for it.
    case allocationFailed
    /// What the allocator gave is no memory that code can run in.
    case unusableMemory(GuestVirtualAddress, String)
    /// Its start routine returned an error.
    case startFailed(status: UInt32)
    /// No thread came by, or none came back, in time.
    case timedOut(String)
    /// Something prevents the agent's work in this guest.
    case unsupported(String)
}

extension AgentError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .hypervisor(let error): error.description
        case .memory(let error, let doing): "\(doing): \(error)"
        case .malformedImage(let why): "the agent's image cannot be used: \(why)"
        case .discovery(let error): error.description
        case .visiblePatches(let agent):
            "the agent \(agent) changes the kernel's code, which this hypervisor cannot hide from the guest's own "
                + "checks; it is not deployed without --allow-visible-patches"
        case .allocationFailed: "the guest's allocator has no memory for it"
        case .unusableMemory(let address, let why):
            "the memory at \(address) that the guest gave cannot be used: \(why)"
        case .startFailed(let status): "its start routine failed with 0x\(String(status, radix: 16))"
        case .timedOut(let what): what
        case .unsupported(let why): why
        }
    }
}
