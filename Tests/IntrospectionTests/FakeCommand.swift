import HypervisorInterface
import Introspection

/// A hold's command that ends when the test says so.
final class FakeCommand: HoldCommand {
    let endDescriptor: Int32
    var end: CommandEnd?
    var hasLeftovers = false
    /// The signals that it was sent.
    private(set) var signals: [Int32] = []
    /// What a signal does to it.
    var onSignal: (FakeCommand, Int32) -> Void = { command, signal in command.end = command.end ?? .signalled(signal) }

    init(descriptor: Int32) { endDescriptor = descriptor }

    var processID: Int32 { 1000 + endDescriptor }

    func send(_ signal: Int32) {
        signals.append(signal)
        onSignal(self, signal)
    }

    func waitForEnd(until deadline: Deadline) {}
}
