import Foundation
import Introspection
import QEMUHypervisor

/// An engine at work on a thread of its own, and what it says, for somebody who waits for it.
final class DemoSession: @unchecked Sendable {
    struct Said {
        var event: EngineEvent
        var time: ContinuousClock.Instant
    }

    private static let timeout: TimeInterval = 60

    private let condition = NSCondition()
    private var events: [Said] = []
    private var failure: (any Error)?
    private var isOver = false

    /// Attaches to a guest.
    /// - Parameters:
    ///   - report: gets each event, on the engine's thread.
    ///   - interrupted: called where somebody wants Vigil to end.
    init(
        _ target: Target, _ options: EngineOptions, report: @escaping (EngineEvent) -> Void,
        interrupted: @escaping @Sendable () -> Void
    ) {
        let work = Work(target: target, options: options, report: report)
        let thread = Thread { [self] in
            do {
                if case .asked = try work.run(observe) { interrupted() }
                end(nil)
            } catch {
                end(error)
            }
        }
        thread.stackSize = 8 << 20
        thread.start()
    }

    /// What is handed to the engine's thread, and used there only.
    private struct Work: @unchecked Sendable {
        let target: Target
        let options: EngineOptions
        let report: (EngineEvent) -> Void

        func run(_ observe: @escaping (EngineEvent) -> Void) throws -> Detachment.Reason {
            let machine = try target.connect()
            machine.wakeDescriptor = InterruptSignals.readEnd
            let engine = Engine(machine, options: options) { event in
                report(event)
                observe(event)
            }
            return try engine.run()
        }
    }

    private func observe(_ event: EngineEvent) {
        condition.lock()
        events.append(Said(event: event, time: .now))
        condition.broadcast()
        condition.unlock()
    }

    private func end(_ error: (any Error)?) {
        condition.lock()
        failure = error
        isOver = true
        condition.broadcast()
        condition.unlock()
    }

    /// The next event; nil where the session is over and all were taken.
    /// - Throws: what ended the session; that nothing was said for long.
    func next() throws -> Said? {
        condition.lock()
        defer { condition.unlock() }
        let deadline = Date().addingTimeInterval(Self.timeout)
        while events.isEmpty {
            if let failure { throw failure }
            if isOver { return nil }
            if !condition.wait(until: deadline) { throw DemoFailure("Vigil said nothing for a minute") }
        }
        return events.removeFirst()
    }

    /// The events that are there.
    func take() -> [Said] {
        condition.lock()
        defer {
            events = []
            condition.unlock()
        }
        return events
    }
}

/// Why the demo could not go on. A sentence.
struct DemoFailure: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}
