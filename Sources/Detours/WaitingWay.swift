import GuestMemory

/// How a held caller waits in the guest.
public enum WaitingWay: Equatable, Sendable {
    /// In calls of the guest's own delay function, one after the other: no byte is written.
    case delay
    /// In the handler, code of Vigil's in the slack of the kernel's image, which a guest that checks itself may
    /// find.
    case handler
}

/// What the guest offers a waiting caller.
public struct WaitingMeans: Equatable, Sendable {
    /// The guest's `KeDelayExecutionThread`. Without it a caller spins in the handler, and cannot wait anywhere
    /// else.
    public var delayFunction: GuestVirtualAddress?
    /// The guest's shared user data, for the handler's lease.
    public var sharedData: GuestVirtualAddress?
    /// What puts the delay function's return address on a caller's stack.
    public var push: PushInstruction?

    /// Callers can wait without a byte of Vigil's.
    public var allowDelays: Bool { delayFunction != nil && push != nil }

    public init(
        delayFunction: GuestVirtualAddress?, sharedData: GuestVirtualAddress?, push: PushInstruction? = nil
    ) {
        self.delayFunction = delayFunction
        self.sharedData = sharedData
        self.push = push
    }
}
