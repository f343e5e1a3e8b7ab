import Agents
import ArgumentParser
import Detours
import Foundation
import HypervisorInterface
import Introspection
import PowerTransitions
import Protections
import QEMUHypervisor
import WindowsGuest

struct Attach: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Attach to a running guest and report its power transitions until it ends, or until Ctrl-C.",
        discussion: """
            Nothing in the guest is changed while Vigil merely watches. A guest that is still in its firmware, or \
            booting, is waited for. On Ctrl-C, on an error, and even when Vigil is killed, everything is taken \
            back and the guest runs on as before.
            """)

    @Argument(help: Target.help) var target: Target
    @OptionGroup var discovery: DiscoveryOptions
    @Flag(
        help: """
            Stay when QEMU ends, and attach to the next one that serves the same socket; wait for the first one, too. \
            There is no limit then to waiting for a kernel, unless --wait gives one.
            """)
    var persist = false
    @Option(
        help: ArgumentHelp(
            "Hold the caller of each transition for so many milliseconds before it takes effect (10000 at most).",
            valueName: "milliseconds"))
    var hold: Int?
    @Flag(
        help: """
            Let Vigil write into the kernel's image where that serves better: a guest that checks its own code may \
            find it. Held callers then wait in a handler of Vigil's.
            """)
    var allowVisiblePatches = false
    @Option(
        help: ArgumentHelp(
            "How the power function is intercepted: breakpoint changes nothing in the guest; detour puts a jump into "
                + "the function, and needs --allow-visible-patches."))
    var intercept: Interception = .breakpoint
    @Option(
        parsing: .upToNextOption,
        help: ArgumentHelp(
            "What runs inside the guest while Vigil is attached, and is taken out before each transition: "
                + AgentKind.allCases.map(\.rawValue).joined(separator: ", ") + ".",
            valueName: "agent"))
    var agents: [AgentKind] = []
    @Flag(
        help: """
            Let pt-filter stop the guest at each change that it tells of, so that it is told while the vCPU that made \
            it stands: as long as a debug register is left for that.
            """)
    var reportAtOnce = false
    @Option(
        parsing: .upToNextOption,
        help: ArgumentHelp(
            "What is protected while Vigil is attached: "
                + ProtectionKind.allCases.map(\.rawValue).joined(separator: ", ") + ".",
            valueName: "protection"))
    var protect: [ProtectionKind] = []
    @Option(
        parsing: .upToNextOption,
        help: ArgumentHelp("The image names of processes that user-code protects.", valueName: "name"))
    var process: [String] = []
    @Flag(help: ArgumentHelp("Take commands on standard input, one a line: \(WishReader.usage)."))
    var commands = false
    @Option(
        help: ArgumentHelp(
            "Where threads are borrowed to take agents out: power-call, the waiting caller's, or system-call, the next "
                + "one that makes a system call."))
    var withdraw: BorrowingPlace = .powerCall
    @Option(
        help: ArgumentHelp(
            "Where hibernations are recorded, so that the session that attaches to the resumed guest can name them "
                + "(default: $XDG_STATE_HOME/vigil or ~/.local/state/vigil).",
            valueName: "directory"))
    var state: String?
    @Option(
        help: ArgumentHelp(
            "Hold the caller of each transition until this shell command has ended; it gets the event, as JSON, "
                + "on its standard input.",
            valueName: "command"))
    var runBefore: String?
    @Option(
        help: ArgumentHelp(
            "End such a hold, and the command, after so many milliseconds: 60000 unless given, 3600000 at most.",
            valueName: "milliseconds"))
    var holdLimit: Int?
    @Option(help: "How to report: text for people, json for scripts (one object a line).")
    var format: OutputFormat = .text

    func validate() throws {
        if protect.contains(.userCode) && process.isEmpty {
            throw ValidationError("--protect user-code needs --process, the image names of the processes to protect.")
        }
        if reportAtOnce && !agents.contains(.pageTableFilter) && !commands {
            throw ValidationError("--report-at-once needs --agents pt-filter, whose reports it is about.")
        }
        if state?.isEmpty == true { throw ValidationError("--state takes the path of a directory.") }
        if let hold, hold < 1 { throw ValidationError("--hold takes a positive number of milliseconds.") }
        if hold != nil && runBefore != nil {
            throw ValidationError(
                "--hold and --run-before exclude each other: with --run-before the hold ends with the command.")
        }
        if runBefore?.isEmpty == true { throw ValidationError("--run-before takes a command.") }
        if let holdLimit {
            if runBefore == nil { throw ValidationError("--hold-limit needs --run-before.") }
            if !RunBefore.limits.contains(.milliseconds(holdLimit)) {
                throw ValidationError("--hold-limit takes 1 to 3600000 milliseconds.")
            }
        }
    }

    mutating func run() throws {
        InterruptSignals.install()
        let renderer = EventRenderer(format)
        var options = try discovery.engineOptions()
        if persist && discovery.wait == nil { options.wait = nil }
        options.interception = intercept
        options.allowVisiblePatches = allowVisiblePatches
        options.waiting = allowVisiblePatches ? .handler : .delay
        options.guardOptions = PowerGuardOptions(hold: hold.map { .milliseconds($0) })
        options.agents = Set(agents)
        options.reportsAtOnce = reportAtOnce
        options.protections = Set(protect)
        options.protectedProcesses = process
        if commands {
            let control = EngineControl()
            WishReader.start(control) { FileHandle.standardError.write(Data("vigil: \($0)\n".utf8)) }
            options.control = control
        }
        options.withdrawalPlace = withdraw
        options.journal = FileHibernationJournal(folder: state ?? StateFolder.standard)
        try Failure.reporting {
            if intercept == .detour && !allowVisiblePatches { throw EngineError.detour(.inline(.visible)) }
            var attendance = Attendance(target: target, persists: persist, renderer: renderer, options: options)
            if let runBefore {
                let limit = holdLimit.map { Duration.milliseconds($0) } ?? RunBefore.defaultLimit
                attendance.options.guardOptions = PowerGuardOptions(holdUntilReleasedWithin: limit)
                attendance.complete = { options, machine in
                    let command = RunBefore(command: runBefore, qemu: machine.identity.processID, renderer: renderer)
                    options.startHoldCommand = command.start
                }
            }
            try attendance.run()
        }
    }
}

extension Interception: ExpressibleByArgument {}
extension AgentKind: ExpressibleByArgument {}
extension ProtectionKind: ExpressibleByArgument {}
extension BorrowingPlace: ExpressibleByArgument {}

/// What commands that look for a kernel share.
struct DiscoveryOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "How long to wait for a guest that is still booting: 60 for attach, 0 for inspect unless given.",
            valueName: "seconds"))
    var wait: Int?
    @Option(
        help: ArgumentHelp(
            "Byte patterns of kernel functions, as a second way of finding them: a CAMI YAML file, or a folder of them.",
            valueName: "path"))
    var patterns: String?

    func validate() throws {
        if let wait, wait < 0 { throw ValidationError("--wait takes a number of seconds.") }
    }

    func engineOptions() throws -> EngineOptions {
        var options = EngineOptions()
        if let wait { options.wait = .seconds(wait) }
        if let patterns {
            do {
                options.patterns = try FunctionPatterns.load(path: patterns)
            } catch {
                throw ValidationError("\(error)")
            }
        }
        return options
    }
}

/// Turns errors into one sentence on standard error and an exit code of their own.
enum Failure {
    static func reporting(_ body: () throws -> Void) throws {
        do {
            try body()
        } catch let error as EngineError {
            throw exit(error.description, VigilExit(error))
        } catch let error as HypervisorError {
            throw exit(error.description, VigilExit(error))
        }
    }

    static func exit(_ sentence: String, _ code: VigilExit) -> ExitCode {
        FileHandle.standardError.write(Data("vigil: \(sentence)\n".utf8))
        return code.exitCode
    }
}
