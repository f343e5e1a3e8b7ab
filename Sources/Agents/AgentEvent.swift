import GuestMemory

/// Where a thread was borrowed that makes an agent's calls.
public enum BorrowingPlace: String, Equatable, Sendable {
    /// In the system-call dispatcher: whichever thread made the next system call.
    case systemCall = "system-call"
    /// At the power function's entry: the caller that waits anyway.
    case powerCall = "power-call"
}

/// How an agent's memory was got rid of.
public enum WithdrawalWay: Equatable, Sendable {
    /// Its thread left, and a borrowed thread gave its memory back.
    case freed(BorrowingPlace)
    /// Its thread left and gave the memory back itself.
    case byItself
    /// The guest was crashing: its pages were filled with zeroes.
    case zeroed
}

/// What becomes of agents.
public enum AgentEvent: Equatable, Sendable {
    /// It is in the guest and runs. With the time since it was asked for.
    case deployed(agent: String, base: GuestVirtualAddress, size: Int, duration: Duration, place: BorrowingPlace)
    /// Nothing of it is in the guest any more. With the time since that was asked for.
    case withdrawn(agent: String, duration: Duration, way: WithdrawalWay)
    /// Nothing leads to it any more, but its memory is still there.
    case neutralised(agent: String, base: GuestVirtualAddress, reason: String)
    /// It was not deployed.
    case failed(agent: String, reason: String)
    case report(agent: String, AgentReport)
}
