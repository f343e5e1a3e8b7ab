import Foundation
import HostProcesses
import Introspection
import PowerTransitions

/// What `attach --run-before` runs for each request whose caller is held.
struct RunBefore {
    static let limits = Duration.milliseconds(1)...Duration.seconds(3600)
    static let defaultLimit = Duration.seconds(60)

    let command: String
    /// QEMU's process, where it is known.
    let qemu: Int32?
    /// Knows what was reported of the request.
    let renderer: EventRenderer

    func start(_ id: RequestID) throws(ProcessStartError) -> any HoldCommand {
        guard let request = renderer.openRequests[id] else { throw ProcessStartError("its request is over") }
        var environment = ProcessInfo.processInfo.environment
        environment["VIGIL_REQUEST"] = String(id.number)
        environment["VIGIL_TRANSITION"] = request.transition.rawValue
        environment["VIGIL_QEMU_PID"] = qemu.map(String.init)
        return try ShellCommand(command, input: request.line + "\n", environment: environment)
    }
}
