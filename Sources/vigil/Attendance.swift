import HypervisorInterface
import Introspection
import QEMUHypervisor

/// Attaches to the machine at a target and, where that is wanted, to each that comes after it there.
struct Attendance {
    /// How often a target is looked at where nobody is. Nothing tells when somebody listens on a socket.
    private static let interval = Duration.milliseconds(100)

    let target: Target
    /// Machines that have ended, or are not there yet, are waited for.
    let persists: Bool
    let renderer: EventRenderer
    var options: EngineOptions
    /// Completes the options for a machine.
    var complete: (inout EngineOptions, QEMUMachine) -> Void = { _, _ in }

    /// Stays until the machine ends, or, where it is waited for, until somebody interrupts.
    mutating func run() throws {
        while let machine = try connect() {
            let reason: String
            do {
                switch try attend(machine) {
                case .asked: return
                case .machineEnded: reason = "the machine has ended"
                case .machineLost(let why): throw HypervisorError.gone(why)
                }
            } catch let error as HypervisorError {
                guard persists, error.isEnd else { throw error }
                reason = error.description
            } catch let error as EngineError {
                guard persists, let end = error.hypervisorError, end.isEnd else { throw error }
                reason = end.description
            }
            if !persists { return }
            renderer.render(.waiting(reason: "\(reason); waiting for the next at \(target)"))
            // Each machine has a session of its own: nothing of one boot is left for another.
            options.session = EngineOptions.newSession()
        }
    }

    private mutating func attend(_ machine: QEMUMachine) throws -> Detachment.Reason {
        machine.wakeDescriptor = InterruptSignals.readEnd
        complete(&options, machine)
        let engine = Engine(machine, options: options, report: renderer.render)
        // What was wished for in one machine is wanted in the next.
        defer { options = engine.options }
        return try engine.run()
    }

    /// - Returns: nil where somebody interrupted while nobody was there.
    private func connect() throws(HypervisorError) -> QEMUMachine? {
        var lastReason: String?
        while true {
            do throws(HypervisorError) {
                return try target.connect()
            } catch {
                guard persists, error.isAbsence || error.isEnd else { throw error }
                if lastReason != error.description {
                    lastReason = error.description
                    renderer.render(.waiting(reason: error.description))
                }
            }
            if InterruptSignals.wait(Self.interval) { return nil }
        }
    }
}

extension HypervisorError {
    /// Nobody is at the target.
    fileprivate var isAbsence: Bool { if case .absent = self { true } else { false } }

    /// Whoever was at the target is not any more, or about to go.
    fileprivate var isEnd: Bool {
        switch self {
        case .gone, .timedOut: true
        default: false
        }
    }
}
