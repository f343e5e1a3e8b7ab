import Detours
import X86

/// Whatever has to leave the guest before the guest goes down, and comes back when it does.
///
/// The guard tells it of requests and their ends, and lends it the threads of callers that wait anyway.
public protocol TransitionParticipant: AnyObject {
    /// A request was made; its caller stands at the function's entry, and the machine stands. Whatever can go at once
    /// goes now.
    func begins(_ id: RequestID, _ transition: Transition) throws(DetourError)

    /// Something is still to be waited for: callers of requests are held.
    var isOutstanding: Bool { get }

    /// Until when callers wait for it at the longest.
    var waitsUntil: Duration { get }

    /// What a caller that waits shall do now; nil for waiting on. The machine stands.
    func nextCall() throws(DetourError) -> GuestCall?

    /// The caller was sent off to do it, and is recognised by `slot`; or (nil) could not be.
    func sent(slot: Int?)

    /// The call that it was sent off to make has come back. The machine stands.
    func returned(slot: Int, _ registers: Registers) throws(DetourError)

    /// No caller waits any longer. Nothing that is still in the guest can do harm afterwards. The machine stands.
    func givesUp() throws(DetourError)

    /// The caller is about to execute the function's first instruction. The machine stands.
    func lets(_ id: RequestID) throws(DetourError)

    /// No request is under way any more, and the guest is still there.
    func ends(_ result: TransitionResult) throws(DetourError)
}
