import GuestMemory
import X86

/// One call of the intercepted function that has not returned yet.
struct FunctionCall {
    /// What became of the call so far.
    enum Role: Equatable {
        /// Reported as ignored; only its return is still counted.
        case ignored
        /// A user-mode call: the request is the kernel-mode call that it leads to, if it leads to one.
        case awaitsReentry
        /// A user-mode call that led to a request.
        case ledTo(RequestID)
        /// The request itself.
        case request(RequestID)
    }

    /// The stack slot that holds the return address: RSP at the entry.
    var stackSlot: UInt64
    var caller: Caller
    var request: PowerRequest
    var role: Role
    /// A debug register watches the return.
    var isWatched: Bool
    /// The step over the entry ended in a fault: the entry will be reached once more.
    var isEntering = false

    /// A request whose return nothing will tell of.
    var isUnwatchedRequest: Bool {
        if case .request = role { !isWatched } else { false }
    }

    /// Whether a vCPU at the entry is this call's, once more.
    func isSame(stackSlot: UInt64, thread: GuestVirtualAddress) -> Bool {
        self.stackSlot == stackSlot && caller.thread == thread && thread.rawValue != 0
    }

    /// Whether a vCPU has just returned from this call. A stack walker reads the slot too, and an access to
    /// it alone means nothing.
    /// - Parameter distance: how far the function's return takes the stack pointer from where it was at the entry.
    func hasReturned(_ registers: Registers, distance: UInt64) -> Bool {
        registers.rip == caller.returnAddress.rawValue && registers.rsp == stackSlot &+ distance
    }
}
