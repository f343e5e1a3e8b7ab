import Foundation
import HypervisorInterface
import Introspection
import PowerTransitions

/// Writes the engine's events to standard output, for people or for scripts.
final class EventRenderer {
    private let format: OutputFormat
    private let start = ContinuousClock.now
    /// Shown before each line of text.
    var prefix = ""
    /// What is open, with its event as a line of JSON, whatever the format.
    private(set) var openRequests: [RequestID: (transition: Transition, line: String)] = [:]
    /// Sees each event after it was written.
    var observer: ((EngineEvent) -> Void)?

    init(_ format: OutputFormat) { self.format = format }

    func render(_ event: EngineEvent) {
        defer { observer?(event) }
        let json = JSONRendering.line(event).text
        switch format {
        case .text: print(line: TextRendering.lines(event).map { time + prefix + $0 }.joined(separator: "\n"))
        case .json: print(line: json)
        }
        switch event {
        case .power(.transitionRequested(let id, let request, _)): openRequests[id] = (request.transition, json)
        case .power(.outcome(let id, _, _, _)): openRequests[id] = nil
        // Another session counts its requests anew.
        case .detached: openRequests = [:]
        default: break
        }
    }

    /// Writes a line that is no event; in JSON nothing.
    func note(_ text: String) { if format == .text { print(line: time + prefix + text) } }

    /// Writes a line at once. Where nobody reads any more (`vigil attach … | head`), Vigil leaves.
    func print(line: String) {
        let bytes = Array((line + "\n").utf8)
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes { write(STDOUT_FILENO, $0.baseAddress, $0.count) }
            if count > 0 {
                done += count
            } else if errno != EINTR {
                return InterruptSignals.raise()
            }
        }
    }

    private var time: String {
        let seconds = Double((ContinuousClock.now - start).microseconds) / 1_000_000
        return String(format: "%8.3f  ", seconds)
    }
}

/// Events as JSON lines. Names and members are an interface: `Documentation/events.md`.
enum JSONRendering {
    static func line(_ event: EngineEvent) -> JSONLine {
        switch event {
        case .waiting(let reason): return sentence("waiting", reason)
        case .warning(let reason): return sentence("warning", reason)
        case .awoken(let awakening):
            var line = JSONLine(event: "awoken")
            line.add("sign", awakening.sign.rawValue)
            line.add("session", awakening.session)
            line.add("request", awakening.request)
            line.add("hibernatedAt", awakening.hibernatedAt.map(JSONLine.time))
            return line
        case .attached(let found): return attached(found)
        case .power(let event): return power(event)
        case .commandStarted(let id, let pid):
            var line = JSONLine(event: "command-started")
            line.add("request", id.number)
            line.add("pid", pid)
            return line
        case .commandEnded(let id, let end, let duration): return commandEnded(id, end, duration)
        case .agent(let event): return agent(event)
        case .protection(let event): return protection(event)
        case .detached(let end): return detached(end)
        }
    }

    private static func sentence(_ event: String, _ reason: String) -> JSONLine {
        var line = JSONLine(event: event)
        line.add("reason", reason)
        return line
    }

    private static func attached(_ found: Attachment) -> JSONLine {
        var line = JSONLine(event: "attached")
        line.add("session", found.session)
        line.add("kernelBase", hex(found.kernel.base.rawValue))
        line.add("build", found.kernel.build)
        line.add("architecture", found.kernel.architecture.rawValue)
        line.add("powerFunction", hex(found.powerFunction.address.rawValue))
        line.add("foundBy", found.powerFunction.foundBy.map(\.rawValue))
        line.add("notes", found.powerFunction.notes)
        line.add("mechanism", found.mechanism.name)
        line.add("memory", found.memoryAccess)
        line.add("runState", found.runState.name)
        line.add("pausedMicroseconds", found.paused.microseconds)
        line.add("hypervisor", found.machine.hypervisor)
        line.add("machine", found.machine.name)
        line.add("uuid", found.machine.uuid)
        line.add("pid", found.machine.processID)
        return line
    }

    private static func power(_ event: PowerEvent) -> JSONLine {
        switch event {
        case .transitionRequested(let id, let request, let caller):
            var line = JSONLine(event: "transition-requested")
            line.add("request", id.number)
            line.add("transition", request.transition.rawValue)
            add(request, caller, to: &line)
            return line
        case .requestIgnored(let request, let caller, let reason, let status):
            var line = JSONLine(event: "request-ignored")
            line.add("reason", reason)
            line.add("status", status.map(ntstatus))
            add(request, caller, to: &line)
            return line
        case .held(let id, let duration, let stops):
            var line = JSONLine(event: "held")
            line.add("request", id.number)
            line.add("microseconds", duration.microseconds)
            line.add("stops", stops)
            return line
        case .released(let id, let reason):
            var line = JSONLine(event: "released")
            line.add("request", id.number)
            line.add("reason", reason.rawValue)
            return line
        case .notHeld(let id, let reason):
            var line = JSONLine(event: "not-held")
            line.add("request", id.number)
            line.add("reason", reason)
            return line
        case .outcome(let id, let transition, let result, let status):
            var line = JSONLine(event: "outcome")
            line.add("request", id.number)
            line.add("transition", transition.rawValue)
            line.add("result", result.rawValue)
            line.add("status", status.map(ntstatus))
            return line
        case .repeatedlyRefused(let count, let delay):
            var line = JSONLine(event: "repeatedly-refused")
            line.add("count", count)
            line.add("delayMicroseconds", delay.microseconds)
            return line
        case .unannounced(let event):
            var line = JSONLine(event: "unannounced")
            line.add("what", event.name)
            return line
        }
    }

    private static func add(_ request: PowerRequest, _ caller: Caller, to line: inout JSONLine) {
        let known = request.isReadable ? request : nil
        line.add("action", known?.action)
        line.add("minimumState", known?.minimumState)
        line.add("flags", known?.flags)
        line.add("caller", CallerJSON(caller))
    }

    private struct CallerJSON: Encodable {
        var mode: String
        var process: String?
        var processID: UInt64?
        var threadID: UInt64?
        var thread: String
        var returnAddress: String

        init(_ caller: Caller) {
            mode = caller.mode.rawValue
            process = caller.processName
            processID = caller.processID
            threadID = caller.threadID
            thread = hex(caller.thread.rawValue)
            returnAddress = hex(caller.returnAddress.rawValue)
        }
    }

    private static func commandEnded(_ id: RequestID, _ end: CommandEnd, _ duration: Duration) -> JSONLine {
        var (code, signal, reason) = (Int32?.none, Int32?.none, String?.none)
        switch end {
        case .exited(let number): code = number
        case .signalled(let number): signal = number
        case .notStarted(let words): reason = words
        }
        var line = JSONLine(event: "command-ended")
        line.add("request", id.number)
        line.add("exitCode", code)
        line.add("signal", signal)
        line.add("reason", reason)
        line.add("microseconds", duration.microseconds)
        return line
    }

    private static func detached(_ end: Detachment) -> JSONLine {
        var line = JSONLine(event: "detached")
        switch end.reason {
        case .asked: line.add("reason", "asked")
        case .machineEnded: line.add("reason", "machine-ended")
        case .machineLost: line.add("reason", "machine-lost")
        }
        line.add("entries", end.calls.entries)
        line.add("returns", end.calls.returns)
        line.add("unwatched", end.calls.unwatched)
        line.add("breakpointStops", end.effects.breakpointStops)
        line.add("pauses", end.effects.pauses)
        line.add("steps", end.effects.steps)
        line.add("callersLeft", end.callersLeft)
        line.add("handlerLeft", end.handlerLeft)
        line.add("openTransitions", end.openTransitions)
        return line
    }
}

/// Events as text for people.
enum TextRendering {
    static func lines(_ event: EngineEvent) -> [String] {
        switch event {
        case .waiting(let reason): ["waiting: \(reason)"]
        case .warning(let reason): ["warning: \(reason)"]
        case .awoken(let awakening): [awoken(awakening)]
        case .attached(let found): attached(found)
        case .power(let event): [power(event)]
        case .commandStarted(let id, let pid): ["#\(id.number) the command runs, pid \(pid)"]
        case .commandEnded(let id, let end, let duration): ["#\(id.number) \(end.words) after \(duration.readable)"]
        case .agent(let event): [agent(event)]
        case .protection(let event): [protection(event)]
        case .detached(let end): [detached(end)]
        }
    }

    private static func attached(_ found: Attachment) -> [String] {
        [
            "attached to \(found.machine.name ?? "a guest") in \(found.machine.hypervisor): Windows kernel build "
                + "\(found.kernel.build) (\(found.kernel.architecture.rawValue)) at \(found.kernel.base), "
                + "guest stood still for \(found.paused.readable)",
            "  NtSetSystemPowerState at \(found.powerFunction.address), found by "
                + found.powerFunction.foundBy.map(\.words).joined(separator: " and ")
                + (found.powerFunction.isConfirmed ? "" : " only"),
        ] + found.powerFunction.notes.map { "  \($0)" } + [
            "  armed, \(found.mechanism.words); memory is \(found.memoryAccess)"
        ]
    }

    private static func awoken(_ awakening: Awakening) -> String {
        guard let session = awakening.session, let request = awakening.request, let time = awakening.hibernatedAt else {
            return "the guest is older than its machine: it hibernated unseen, or is a snapshot, or was migrated"
        }
        return "awoken from the hibernation of \(JSONLine.time(time)): #\(request) of session \(session)"
    }

    private static func power(_ event: PowerEvent) -> String {
        switch event {
        case .transitionRequested(let id, let request, let caller):
            "#\(id.number) \(request.transition.rawValue) requested by \(describe(caller)): \(describe(request))"
        case .requestIgnored(let request, let caller, let reason, let status):
            "ignored a call by \(describe(caller)), \(describe(request)): \(reason)"
                + (status.map { " (\(ntstatus($0)))" } ?? "")
        case .held(let id, let duration, let stops):
            "#\(id.number) held the caller for \(duration.readable), \(stops) stops"
        case .released(let id, let reason):
            "#\(id.number) released: \(reason.words)"
        case .notHeld(let id, let reason):
            "#\(id.number) not held: \(reason)"
        case .outcome(let id, let transition, let result, let status):
            "#\(id.number) \(transition.rawValue): \(result.rawValue)" + (status.map { " (\(ntstatus($0)))" } ?? "")
        case .repeatedlyRefused(let count, let delay):
            "\(count) requests in a row were refused; the next one is answered \(delay.readable) later"
        case .unannounced(let event):
            "unannounced: \(event.words), which no request foretold"
        }
    }

    private static func describe(_ caller: Caller) -> String {
        let id = caller.processID.map(String.init) ?? "?"
        let process = caller.processName.map { "\($0) (\(id))" } ?? "an unknown process"
        return "\(process) in \(caller.mode.rawValue) mode"
    }

    private static func describe(_ request: PowerRequest) -> String {
        guard request.isReadable else { return "arguments that could not be read" }
        let action = PowerAction(rawValue: request.action)?.windowsName ?? "action \(request.action)"
        let state = SystemPowerState(rawValue: request.minimumState)?.windowsName ?? "state \(request.minimumState)"
        return "\(action), \(state), flags \(hex(UInt64(request.flags)))"
    }

    private static func detached(_ end: Detachment) -> String {
        let reason =
            switch end.reason {
            case .asked: "left the guest"
            case .machineEnded: "the machine ended"
            case .machineLost: "the machine was lost"
            }
        var text = "\(reason): \(end.calls.entries) calls seen, \(end.calls.returns) returns"
        if end.callersLeft > 0 {
            text += "; \(end.callersLeft) callers are still on their way out of the handler"
        }
        if let reason = end.handlerLeft {
            text += "; the jump is gone, its handler stays, where nothing leads any more: \(reason)"
        }
        return text
    }
}
