import HypervisorInterface

/// What an operator does with a machine beside Vigil, over a QMP socket of the operator's own.
public final class QEMUOperator {
    private let qmp: QMPClient

    /// - Throws: `cannotConnect`, `heldByAnotherClient`.
    public init(_ target: QEMUTarget) throws(HypervisorError) {
        qmp = QMPClient(socket: try target.connect(), pulse: Pulse(), idPrefix: "operator")
        _ = try qmp.negotiate(target: target.description)
    }

    /// How often it is looked whether the guest still is on its way to sleep.
    private static let interval = Duration.milliseconds(50)

    /// Waits until the guest sleeps, and wakes it.
    /// - Parameter isHopeless: looked at now and then; when it is true, the guest will not sleep any more.
    /// - Returns: false where that was so.
    /// - Throws: `timedOut` where it does not go to sleep in time.
    @discardableResult
    public func wakeWhenAsleep(
        within timeout: Duration, unless isHopeless: () -> Bool = { false }
    ) throws(HypervisorError) -> Bool {
        let deadline = ContinuousClock.now + timeout
        while try QEMUMachine.runState(qmp) != .suspended {
            guard ContinuousClock.now < deadline else { throw .timedOut(waitingFor: "the guest to go to sleep") }
            if isHopeless() { return false }
            if qmp.takeEvent() == nil { try qmp.receive(until: min(deadline, .now + Self.interval)) }
        }
        try qmp.execute("system_wakeup")
        return true
    }

    /// Ends the machine.
    public func quit() throws(HypervisorError) { try qmp.execute("quit") }
}
