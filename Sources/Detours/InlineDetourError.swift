import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// Why an inline detour was not put into a function, or not taken out of it.
public enum InlineDetourError: Error, Sendable {
    /// The patch could be read by the guest, and the user did not allow that.
    case visible
    case hypervisor(HypervisorError)
    case memory(MemoryError, doing: String)
    /// No room for the handler was found.
    case noSlack(DiscoveryError)
    /// The function's first instructions cannot be moved.
    case prologue(PrologueRefusal)
    /// The place for the handler has fewer bytes than it needs, both in bytes.
    case slackTooSmall(GuestVirtualAddress, available: UInt64, needed: Int)
    /// The place for the handler is not zero.
    case slackInUse(GuestVirtualAddress)
    /// The handler is so far away that a jump with 32 bits does not lead there.
    case slackOutOfReach(GuestVirtualAddress)
    /// The function's first bytes are not those that were written.
    case entryChanged(GuestVirtualAddress)
    /// The function's bytes are not those that were there before the jump was taken out.
    case functionChanged(GuestVirtualAddress)
    /// A vCPU stands in the bytes to be replaced, but on none of their instructions.
    case processorInside(VCPU, GuestVirtualAddress)
    /// A thread that no vCPU runs will go on inside the bytes to be replaced.
    case threadInside(GuestVirtualAddress)
    /// A change failed, and could not be taken back either: the first error, and the second.
    case unfinished(HypervisorError, thenTakingBack: HypervisorError)
}

extension InlineDetourError {
    /// The guest is as it was, and the hypervisor does what it is told.
    var changedNothing: Bool {
        switch self {
        case .hypervisor, .unfinished: false
        default: true
        }
    }
}

extension InlineDetourError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .visible:
            "an inline detour changes the kernel's code where the guest can read it, and this hypervisor cannot "
                + "hide that (PatchGuard would stop the guest): it is only done with --allow-visible-patches"
        case .hypervisor(let error): error.description
        case .memory(let error, let doing):
            "\(doing): \(error)"
                + (error.isNotPresent
                    ? "; a jump can only be put into code that is in memory, and pageable code may not be" : "")
        case .noSlack(let error): "no room for the inline detour's handler in the kernel's image: \(error)"
        case .prologue(let refusal): "the function's first instructions cannot be moved: \(refusal)"
        case .slackTooSmall(let address, let available, let needed):
            "the kernel's slack at \(address) has \(available) bytes, the handler needs \(needed)"
        case .slackInUse(let address): "the kernel's slack at \(address) is not zero, so it is left alone"
        case .slackOutOfReach(let address): "the kernel's slack at \(address) is more than 2 GiB from the function"
        case .entryChanged(let address):
            "the code at \(address) is not what Vigil wrote there: somebody else changed it, so it is left alone"
        case .functionChanged(let address):
            "the code at \(address) is not what it was before the jump was taken out: somebody else changed it, so it "
                + "is left alone"
        case .processorInside(let vcpu, let address):
            "\(vcpu) stands at \(address), inside an instruction that the detour would replace: try again"
        case .threadInside(let address):
            "a waiting thread will go on at \(address), which the detour would replace: try again"
        case .unfinished(let first, let second):
            "a change of the guest's code failed (\(first)), and taking it back failed too (\(second)): "
                + "the detour is half there, and has to be disarmed again"
        }
    }
}
