import HypervisorInterface

/// What an operator does with a machine beside Vigil, over a QMP socket of the operator's own.
public final class QEMUOperator {
    private let qmp: QMPClient

    /// - Throws: `cannotConnect`, `heldByAnotherClient`.
    public init(_ target: QEMUTarget) throws(HypervisorError) {
        qmp = QMPClient(socket: try target.connect(), pulse: Pulse(), idPrefix: "operator")
        _ = try qmp.negotiate(target: target.description)
    }

    /// Waits until the guest sleeps, and wakes it.
    /// - Throws: `timedOut` where it does not go to sleep in time.
    public func wakeWhenAsleep(within timeout: Duration) throws(HypervisorError) {
        let deadline = ContinuousClock.now + timeout
        while try QEMUMachine.runState(qmp) != .suspended {
            guard ContinuousClock.now < deadline else { throw .timedOut(waitingFor: "the guest to go to sleep") }
            if qmp.takeEvent() == nil { try qmp.receive(until: deadline) }
        }
        try qmp.execute("system_wakeup")
    }
}
