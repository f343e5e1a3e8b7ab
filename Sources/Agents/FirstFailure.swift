/// What went wrong first with something that goes on all the same. An error of the hypervisor's ends it.
struct FirstFailure {
    private var failure: AgentError?

    mutating func collect(_ body: () throws(AgentError) -> Void) throws(AgentError) {
        do throws(AgentError) {
            try body()
        } catch {
            if case .hypervisor = error { throw error }
            failure = failure ?? error
        }
    }

    func rethrow() throws(AgentError) { if let failure { throw failure } }
}

extension Duration {
    var milliseconds: Int64 {
        let (seconds, attoseconds) = components
        return seconds &* 1000 &+ attoseconds / 1_000_000_000_000_000
    }
}
