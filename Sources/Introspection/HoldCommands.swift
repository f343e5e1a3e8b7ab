import Glibc
import HostProcesses
import HypervisorInterface
import PowerTransitions

/// Starts the command of one request.
public typealias HoldCommandStart = (RequestID) throws(ProcessStartError) -> any HoldCommand

/// Runs one command for each request whose caller waits: begins them, sees them end, and ends those that nobody
/// waits for any more.
final class HoldCommands {
    /// From SIGTERM to SIGKILL.
    static let gracePeriod = Duration.seconds(2)
    /// How long an end by SIGKILL may take. Only a process that hangs in the host's kernel needs longer.
    private static let killTimeout = Duration.seconds(1)

    private struct Run {
        var id: RequestID
        var command: any HoldCommand
        var start: Deadline
        /// It was told to end, and what is there of it then is killed.
        var killAt: Deadline?
        /// Its end was reported; processes that it started may be left.
        var hasEnded = false
    }

    private var runs: [Run] = []
    private let startCommand: HoldCommandStart
    private let now: () -> Deadline
    private let report: (EngineEvent) -> Void

    init(
        start: @escaping HoldCommandStart, now: @escaping () -> Deadline = { ContinuousClock.now },
        report: @escaping (EngineEvent) -> Void
    ) {
        startCommand = start
        self.now = now
        self.report = report
    }

    /// What can be read when a command has ended.
    var descriptors: [Int32] { runs.filter { !$0.hasEnded }.map(\.command.endDescriptor) }

    /// When `follow` has something to do, although no command ends.
    var nextDeadline: Deadline? { runs.compactMap(\.killAt).min() }

    /// Brings the commands into step with the requests that wait. It does not block.
    /// - Returns: requests whose callers need not wait any longer, and why.
    func follow(_ waiting: [RequestID]) -> [(id: RequestID, reason: ReleaseReason)] {
        var done = noteEnds()
        for id in waiting where !runs.contains(where: { $0.id == id }) && !done.contains(where: { $0.id == id }) {
            if let end = start(id) { done.append((id, Self.reason(end))) }
        }
        terminate { !waiting.contains($0.id) }
        kill()
        return done
    }

    /// Ends every command, and waits for that: for as long as they are given between SIGTERM and SIGKILL.
    func endAll() {
        _ = noteEnds()
        terminate { _ in true }
        for run in runs {
            guard let deadline = run.killAt else { continue }
            run.command.waitForEnd(until: deadline)
            // Nothing tells when the last process of a group has ended.
            while run.command.hasLeftovers && now() < deadline { usleep(10_000) }
            guard run.command.end == nil || run.command.hasLeftovers else { continue }
            run.command.send(SIGKILL)
            run.command.waitForEnd(until: now() + Self.killTimeout)
        }
        _ = noteEnds()
        runs = []
    }

    private func start(_ id: RequestID) -> CommandEnd? {
        let time = now()
        do throws(ProcessStartError) {
            let command = try startCommand(id)
            runs.append(Run(id: id, command: command, start: time))
            report(.commandStarted(id, processID: command.processID))
            return nil
        } catch {
            let end = CommandEnd.notStarted(reason: error.description)
            report(.commandEnded(id, end, duration: now() - time))
            return end
        }
    }

    private func noteEnds() -> [(id: RequestID, reason: ReleaseReason)] {
        var ended: [(id: RequestID, reason: ReleaseReason)] = []
        for index in runs.indices where !runs[index].hasEnded {
            guard let end = runs[index].command.end else { continue }
            runs[index].hasEnded = true
            report(.commandEnded(runs[index].id, end, duration: now() - runs[index].start))
            ended.append((runs[index].id, Self.reason(end)))
        }
        // What a command leaves behind that ended by itself was meant to stay.
        runs.removeAll { $0.hasEnded && ($0.killAt == nil || !$0.command.hasLeftovers) }
        return ended
    }

    private static func reason(_ end: CommandEnd) -> ReleaseReason { end.isSuccess ? .commandEnded : .commandFailed }

    private func terminate(_ isChosen: (Run) -> Bool) {
        for index in runs.indices where runs[index].killAt == nil && isChosen(runs[index]) {
            runs[index].command.send(SIGTERM)
            runs[index].killAt = now() + Self.gracePeriod
        }
    }

    private func kill() {
        let time = now()
        for index in runs.indices.reversed() {
            guard let deadline = runs[index].killAt, deadline <= time else { continue }
            runs[index].command.send(SIGKILL)
            if runs[index].hasEnded {
                runs.remove(at: index)
            } else {
                runs[index].killAt = time + Self.gracePeriod
            }
        }
    }
}
