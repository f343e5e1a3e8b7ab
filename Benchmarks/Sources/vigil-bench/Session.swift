import Agents
import Detours
import Foundation
import Glibc
import HypervisorInterface
import Introspection
import PowerTransitions
import QEMUHypervisor

/// Vigil attached to a guest, as `vigil attach` does it: the engine on a thread of its own, its events taken here.
final class Session: @unchecked Sendable {
    private let condition = NSCondition()
    private var events: [EngineEvent] = []
    private var failure: (any Error)?
    private var isOver = false
    private let wake: (read: Int32, write: Int32)

    /// Attaches, and returns when the guest is armed.
    init(
        _ guest: BenchmarkGuest, guardianCommand: [String], hold: Duration? = nil, waiting: WaitingWay = .delay,
        agents: Set<AgentKind> = [], withdrawalPlace: BorrowingPlace = .powerCall
    ) throws {
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { throw BenchmarkError("no pipe") }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        wake = (ends[0], ends[1])
        let target = guest.machine.target
        let thread = Thread { [self] in
            do {
                let machine = try QEMUMachine(
                    QEMUTarget(String(target.dropFirst("qemu:".count))), guardianCommand: guardianCommand)
                machine.wakeDescriptor = wake.read
                var options = EngineOptions()
                options.waiting = waiting
                options.guardOptions = PowerGuardOptions(hold: hold)
                options.agents = agents
                options.allowVisiblePatches = agents.contains(.pageTableFilter)
                options.withdrawalPlace = withdrawalPlace
                try Engine(machine, options: options, report: take).run()
            } catch {
                condition.withLock { failure = error }
            }
            condition.withLock {
                isOver = true
                condition.broadcast()
            }
        }
        thread.stackSize = 8 << 20
        thread.start()
        try next { if case .attached = $0 { () } else { nil } }
    }

    deinit {
        close(wake.read)
        close(wake.write)
    }

    private func take(_ event: EngineEvent) {
        condition.withLock {
            events.append(event)
            condition.broadcast()
        }
    }

    /// Waits for the first event that `pick` wants, and forgets those before it.
    func next<Value>(_ pick: (EngineEvent) -> Value?) throws -> Value {
        try condition.withLock {
            let deadline = Date().addingTimeInterval(60)
            while true {
                for (index, event) in events.enumerated() {
                    if let value = pick(event) {
                        events.removeSubrange(...index)
                        return value
                    }
                }
                if let failure { throw failure }
                guard !isOver, condition.wait(until: deadline) else {
                    throw BenchmarkError("Vigil did not say what it should")
                }
            }
        }
    }

    /// Whether an event has come that `isWanted` wants. Forgets it and those before it.
    func has(_ isWanted: (EngineEvent) -> Bool) throws -> Bool {
        try condition.withLock {
            if let failure { throw failure }
            guard let index = events.firstIndex(where: isWanted) else { return false }
            events.removeSubrange(...index)
            return true
        }
    }

    /// Leaves the guest, and returns when nothing of Vigil is in it.
    @discardableResult
    func end() throws -> Detachment {
        var byte: UInt8 = 1
        _ = write(wake.write, &byte, 1)
        let detachment = try next { if case .detached(let detachment) = $0 { detachment } else { nil } }
        condition.withLock { while !isOver { condition.wait() } }
        return detachment
    }
}
