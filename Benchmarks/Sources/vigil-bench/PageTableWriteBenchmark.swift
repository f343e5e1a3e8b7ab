import Agents
import Introspection

/// How often a second the guest maps a page, touches and unmaps it: with no Vigil, with the page-table filter, and
/// with a stop for each write.
enum PageTableWriteBenchmark {
    static let benchmark = Benchmark(names: ["pt-writes-filtered", "pt-writes-stopped"]) { context in
        let guest = try context.guest()
        let console = guest.machine.console
        let unmaps = try guest.address(of: "MiExchangePte")
        let command = context.guardianCommand
        let count = context.quick ? 200_000 : 1_000_000

        func work() throws -> Double {
            try console.run("remap \(count / 10)")
            return Double(count) / (try seconds { try console.run("remap \(count)") })
        }

        var rounds = Rounds(context.quick ? 2 : 5)
        try rounds.measure {
            let session = try Session(guest, guardianCommand: command, agents: [.pageTableFilter])
            try deploy(session, guest)
            var rate = try work()
            // One that was put in anew meanwhile was not there all the time.
            while try session.has(isWithdrawal) {
                try deploy(session, guest)
                rate = try work()
            }
            try session.end()
            return rate
        } against: {
            try work()
        }

        var stopped: [Double] = []
        let stops = context.quick ? 100 : 1000
        for _ in 0..<rounds.count {
            let client = try BareClient(guest)
            try client.arm(unmaps)
            // A page is mapped and unmapped in each of them.
            let number = try console.start("remap \(stops)")
            try client.watchWrites()
            let time = try seconds { try client.watchedWrites(stops) }
            try client.disarm()
            _ = try console.reply(to: number)
            stopped.append(Double(stops) / 2 / time)
        }
        let (value, limit) = rounds.medians
        return [
            Measurement(
                "pt-writes-filtered", .rate, value: value / 1e3, limit: limit / 1e3, unit: "k/s",
                goal: .ratio(0.5, "within 2x of no Vigil")),
            Measurement(
                "pt-writes-stopped", .rate, value: value / 1e3, limit: Rounds.median(stopped) / 1e3, unit: "k/s",
                goal: .ratio(100, "100x a stop for each write")),
        ]
    }

    private static func isWithdrawal(_ event: EngineEvent) -> Bool {
        if case .agent(.withdrawn) = event { true } else { false }
    }

    /// Has the filter find who writes page tables, and waits until it has no more to look for.
    private static func deploy(_ session: Session, _ guest: BenchmarkGuest) throws {
        let console = guest.machine.console
        // Its threads are those of system calls.
        try console.run("busy on")
        let deadline = ContinuousClock.now + .seconds(60)
        while try !session.has({ if case .agent(.deployed) = $0 { true } else { false } }) {
            guard ContinuousClock.now < deadline else { throw BenchmarkError("the filter was not deployed") }
            try console.run("remap 20000")
        }
        let quiet = ContinuousClock.now + .seconds(1)
        while ContinuousClock.now < quiet { try console.run("remap 20000") }
        try console.run("busy off")
    }
}
