import ArgumentParser
import Detours
import HypervisorInterface
import Introspection
import MemoryImage
import QEMUHypervisor
import WindowsGuest

struct Inspect: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Say what kernel a guest runs, what was found in it and how, and what would be armed.",
        discussion: """
            Read-only: the guest is not paused, no debug connection is opened, and nothing is changed. \
            It works on a stopped guest too.
            """)

    @Argument(help: Target.help) var target: Target
    @OptionGroup var discovery: DiscoveryOptions
    @Option(help: "How to report: text for people, json for scripts.") var format: OutputFormat = .text

    mutating func run() throws {
        InterruptSignals.install()
        let options = try discovery.engineOptions()
        try Failure.reporting {
            let report = try report(options)
            EventRenderer(format).print(line: format == .json ? report.json : report.text)
        }
    }

    private func report(_ options: EngineOptions) throws -> InspectionReport {
        switch target {
        case .qemu:
            let machine = try target.connect()
            machine.wakeDescriptor = InterruptSignals.readEnd
            // Without --wait, what is there now is what is told.
            let survey = try survey(machine, options, until: .now + .seconds(discovery.wait ?? 0))
            let obstacle = try machine.debuggerInPlace().map { "a debug connection is in place (chardev \"\($0)\")" }
            return InspectionReport(machine: machine, survey: survey, state: try machine.runState(), obstacle: obstacle)
        case .image(let path):
            let machine = try MemoryImage(path: path)
            machine.wakeDescriptor = InterruptSignals.readEnd
            // Nothing changes in an image: there is nothing to wait for.
            let survey = try GuestSurvey(machine, patterns: options.patterns)
            return InspectionReport(
                machine: machine, survey: survey, state: try machine.runState(),
                obstacle: "a memory image can only be looked at")
        }
    }

    /// Surveys the guest, again and again while it may still be booting.
    private func survey(
        _ machine: QEMUMachine, _ options: EngineOptions, until deadline: Deadline
    ) throws -> GuestSurvey {
        while true {
            do throws(EngineError) {
                return try GuestSurvey(machine, patterns: options.patterns)
            } catch {
                guard case .discovery(let problem) = error, problem.canBeRetried, ContinuousClock.now < deadline else {
                    throw error
                }
            }
            // Under page-table isolation a vCPU in user mode hides the kernel: soon it will not.
            switch try machine.nextEvent(until: min(deadline, .now + .milliseconds(50))) {
            case .gone(let reason): throw HypervisorError.gone(reason)
            case .interrupted: throw Failure.exit("interrupted while waiting for the guest's kernel", .failure)
            default: break
            }
        }
    }
}

/// What `inspect` says.
private struct InspectionReport {
    let machine: any VirtualMachine
    let survey: GuestSurvey
    let state: RunState
    /// Why arming would be refused, or nil.
    let obstacle: String?

    private var kernel: WindowsKernel { survey.kernel }

    /// What an inline detour would write, or why there can be none now.
    private var detour: Result<InlineDetourPlan, InlineDetourError> {
        do throws(InlineDetourError) {
            return .success(try survey.inlineDetourPlan())
        } catch {
            return .failure(error)
        }
    }

    private var proof: (name: String, words: String) {
        switch survey.reentry {
        case .proved(let path):
            ("proved", "proved, over " + path.map(\.description).joined(separator: ", "))
        case .notFound(let branches):
            ("not-found", "not found (\(branches) branches could not be followed): user-mode calls count as requests")
        case .undecided(let why):
            ("undecided", "undecided, \(why): user-mode calls count as requests")
        }
    }

    var text: String {
        let function = survey.powerFunction
        var lines = [
            "machine      \(machine.identity.name ?? "unnamed"), \(machine.identity.hypervisor), \(state.name)"
                + (machine.identity.processID.map { ", pid \($0)" } ?? ""),
            "memory       \(machine.memory.size >> 20) MiB, \(machine.memoryAccess)",
            "kernel       Windows build \(kernel.build), \(kernel.architecture.rawValue), at \(kernel.base), "
                + "\(kernel.image.size >> 10) KiB",
            "function     NtSetSystemPowerState at \(function.address)",
            "  found by   " + function.foundBy.map(\.words).joined(separator: " and ")
                + (function.isConfirmed ? ", which agree" : ": the only way"),
        ]
        lines += function.notes.map { "             \($0)" }
        lines.append("  re-entry   \(proof.words)")
        let delay = survey.means.delayFunction.map { "KeDelayExecutionThread at \($0)" }
        lines.append("waiting      " + (delay.map { "in \($0), without a byte written" } ?? "not possible as it is"))
        lines += handlerLines(delay)
        switch detour {
        case .success(let plan):
            lines.append("detour       possible, only with --intercept detour --allow-visible-patches:")
            lines.append(
                "             a jump over \(plan.patch.count) bytes at \(plan.patchAddress), to "
                    + "\(plan.handler.count) bytes at \(plan.handlerAddress)")
        case .failure(let error): lines.append("detour       not possible now: \(error)")
        }
        lines += bugCheckLines
        for (number, kind) in AgentKind.allCases.enumerated() {
            let words =
                kind.obstacle(in: survey, of: machine).map { "not possible: \($0)" }
                ?? (kind.patchesCode ? "possible, only with --allow-visible-patches" : "possible")
            lines.append((number == 0 ? "agents       " : "             ") + "\(kind.rawValue): \(words)")
        }
        lines.append(
            "would arm    " + (obstacle.map { "nothing: \($0)" } ?? "one breakpoint on the function's entry, patchless")
        )
        return lines.joined(separator: "\n")
    }

    /// There can be a handler in this kernel.
    private var canHaveHandler: Bool { DetourHandler.isFor(kernel.architecture) }

    /// What waiting callers would be put into where that may be seen.
    private func handlerLines(_ delay: String?) -> [String] {
        guard canHaveHandler else { return [] }
        var lines = ["  visible    only with --allow-visible-patches, while a caller is held:"]
        switch survey.slack {
        case .success(let slack):
            lines.append("             a handler, \(DetourHandler.length) bytes at \(slack.address)")
            lines.append("             (unused end of section \(slack.section))")
        case .failure(let error):
            lines.append("             no room for a handler: \(error)")
        }
        lines.append(
            "             waiting in \(delay ?? "a pause loop")"
                + (survey.means.sharedData == nil ? ", no lease: the guest's clock cannot be read" : ", lease of 2 s"))
        return lines
    }

    /// Where a crash would be seen while there are agents in the guest.
    private var bugCheckLines: [String] {
        guard let bugCheck = survey.bugCheck else {
            return ["crash        seen only by a pvpanic device: the kernel exports no KeBugCheckEx"]
        }
        let ways = bugCheck.foundBy.map(\.words).joined(separator: " and ")
        let how = ways.isEmpty ? "" : ", found by \(ways)"
        return ["crash        seen at \(bugCheck.name), \(bugCheck.address)" + how]
            + bugCheck.notes.map { "             \($0)" }
    }

    var json: String {
        var line = JSONLine(event: "inspected")
        line.add("machine", machine.identity.name)
        line.add("hypervisor", machine.identity.hypervisor)
        line.add("pid", machine.identity.processID)
        line.add("runState", state.name)
        line.add("memoryBytes", machine.memory.size)
        line.add("memory", machine.memoryAccess)
        line.add("kernelBase", hex(kernel.base.rawValue))
        line.add("build", kernel.build)
        line.add("architecture", kernel.architecture.rawValue)
        line.add("powerFunction", hex(survey.powerFunction.address.rawValue))
        line.add("foundBy", survey.powerFunction.foundBy.map(\.rawValue))
        line.add("notes", survey.powerFunction.notes)
        line.add("reentry", proof.name)
        let handler = canHaveHandler ? try? survey.slack.get() : nil
        line.add("handler", handler.map { hex($0.address.rawValue) })
        line.add("delayFunction", survey.means.delayFunction.map { hex($0.rawValue) })
        line.add("lease", canHaveHandler && survey.means.sharedData != nil)
        switch detour {
        case .success(let plan):
            line.add("detour", hex(plan.handlerAddress.rawValue))
            line.add("detourObstacle", String?.none)
        case .failure(let error):
            line.add("detour", String?.none)
            line.add("detourObstacle", error.description)
        }
        line.add("bugCheck", survey.bugCheck?.name)
        line.add("bugCheckAddress", survey.bugCheck.map { hex($0.address.rawValue) })
        line.add("bugCheckFoundBy", survey.bugCheck?.foundBy.map(\.rawValue) ?? [])
        line.add("bugCheckNotes", survey.bugCheck?.notes ?? [])
        let possible = AgentKind.allCases.filter { $0.obstacle(in: survey, of: machine) == nil }
        line.add("agents", possible.map(\.rawValue))
        line.add("agentsThatNeedVisiblePatches", possible.filter(\.patchesCode).map(\.rawValue))
        line.add("wouldArm", obstacle == nil)
        line.add("obstacle", obstacle)
        return line.text
    }
}
