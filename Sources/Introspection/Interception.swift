import Detours
import GuestMemory
import HypervisorInterface
import WindowsGuest

/// How the power function is intercepted.
public enum Interception: String, CaseIterable, Sendable {
    /// By an execution breakpoint on its entry: nothing in the guest is changed.
    case breakpoint
    /// By a jump in its first bytes, which the guest can read.
    case detour
}

extension GuestSurvey {
    /// Where the inline detour's handler goes: behind the room of the one that callers wait in.
    ///
    /// Its bytes are not looked at here: an earlier session may have had to leave the same handler there.
    var detourSlack: Result<KernelSlack, DiscoveryError> {
        slack.flatMap { slack in
            let offset = (UInt64(DetourHandler.length) + 15) & ~15
            let place = slack.address + offset
            let pageEnd = (slack.address.rawValue | 4095) + 1
            guard place.rawValue + UInt64(InlineDetourPlan.maximumHandlerLength) <= pageEnd else {
                return .failure(.notFound("\(InlineDetourPlan.maximumHandlerLength) more unused bytes there"))
            }
            var rest = slack
            rest.address = place
            rest.available = pageEnd - place.rawValue
            return .success(rest)
        }
    }

    /// An inline detour for the power function. Nothing is changed by making one.
    public func inlineDetour(
        _ effects: GuestEffects, allowVisiblePatches: Bool
    ) throws(InlineDetourError) -> InlineDetour {
        switch detourSlack {
        case .failure(let error): throw .noSlack(error)
        case .success(let place):
            return InlineDetour(
                entry: powerFunction.address, slack: place, memory: kernel.memory, effects: effects,
                allowVisiblePatches: allowVisiblePatches, mode: kernel.architecture.decodingMode)
        }
    }

    /// What an inline detour for the power function would write. Nothing is changed.
    public func inlineDetourPlan() throws(InlineDetourError) -> InlineDetourPlan {
        switch detourSlack {
        case .failure(let error): throw .noSlack(error)
        case .success(let place):
            return try InlineDetour.plan(
                entry: powerFunction.address, slack: place, memory: kernel.memory,
                mode: kernel.architecture.decodingMode)
        }
    }
}
