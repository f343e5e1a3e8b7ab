import ArgumentParser
import HypervisorInterface
import Introspection
import WindowsGuest

/// What Vigil's exit status says. Documented in `Documentation/commands.md`.
enum VigilExit: Int32, CaseIterable {
    case success = 0
    /// Something that none of the others names.
    case failure = 1
    /// The target cannot be reached.
    case cannotConnect = 3
    /// The QMP socket has another client.
    case socketBusy = 4
    /// A debugger, or another Vigil, is attached.
    case debuggerBusy = 5
    /// No kernel came up in time.
    case noKernelYet = 6
    /// The guest runs, but no Windows.
    case notWindows = 7
    /// The kernel is known, but something needed in it is not.
    case notFound = 8
    /// QEMU stopped answering, or ended, in the middle of something.
    case machineLost = 9
    /// The guardian took over, or was lost.
    case guardian = 10
    /// A program that is needed is not installed.
    case missingProgram = 11
    /// The demo did not see what it should have.
    case demoFailed = 12
    /// What was asked for changes the guest where the guest can see it, and was not allowed, or cannot be put there.
    case detourRefused = 13
    /// A file is no memory image that can be used.
    case unusableImage = 14
    /// A memory image cannot be attached to.
    case notControllable = 15

    var exitCode: ExitCode { ExitCode(rawValue) }

    init(_ error: EngineError) {
        if let hypervisor = error.hypervisorError {
            self.init(hypervisor)
        } else if case .discovery(let problem) = error {
            switch problem {
            case .noKernel: self = .notWindows
            case _ where problem.canBeRetried: self = .noKernelYet
            default: self = .notFound
            }
        } else if case .detour(.inline) = error {
            self = .detourRefused
        } else if case .agent = error {
            self = .detourRefused
        } else {
            self = .failure
        }
    }

    init(_ error: HypervisorError) {
        self =
            switch error {
            case .cannotConnect, .absent, .cannotOpen: .cannotConnect
            case .unusableImage: .unusableImage
            case .notControllable: .notControllable
            case .heldByAnotherClient: .socketBusy
            case .debuggerBusy: .debuggerBusy
            case .gone, .timedOut: .machineLost
            case .takenOver, .guardianLost: .guardian
            case .unsupported, .commandFailed, .unexpectedAnswer: .failure
            }
    }
}
