/// Holding the caller of a refused request: how often the guest stops for it, and how much longer it takes than asked.
enum HoldBenchmark {
    static let benchmark = Benchmark(names: ["hold-stops", "hold-time"]) { context in
        let guest = try context.guest()
        let entry = try guest.address(of: "NtSetSystemPowerState")
        let command = context.guardianCommand
        let hold = 100
        let calls = context.quick ? 2 : 5
        try guest.machine.console.run("refuse on")
        defer { _ = try? guest.machine.console.run("refuse off") }

        var stops: [Double] = []
        var steps: [Double] = []
        var rounds = Rounds(context.quick ? 2 : 5)
        try rounds.measure {
            let session = try Session(guest, guardianCommand: command, hold: .milliseconds(hold))
            var overheads: [Double] = []
            for _ in 0..<calls {
                let number = try guest.machine.console.start("power kernel 5 6 0")
                let held = try session.next {
                    if case .power(.held(_, let duration, let stops)) = $0 { (duration, stops) } else { nil }
                }
                _ = try guest.machine.console.reply(to: number)
                overheads.append(held.0.inSeconds - Double(hold) * 1e-3)
                stops.append(Double(held.1))
            }
            steps.append(Double(try session.end().effects.steps) / Double(calls))
            return Rounds.median(overheads)
        } against: {
            // The simplest hold there is: the whole guest stands.
            let client = try BareClient(guest)
            try client.arm(entry)
            var overheads: [Double] = []
            for _ in 0..<calls {
                let number = try guest.machine.console.start("power kernel 5 6 0")
                overheads.append(try client.hold(milliseconds: hold) - Double(hold) * 1e-3)
                let deadline = ContinuousClock.now + .seconds(20)
                while try guest.machine.console.replyIfThere(to: number) == nil {
                    guard ContinuousClock.now < deadline else { throw BenchmarkError("the held call did not return") }
                    try client.goOn(within: 5)
                }
            }
            try client.disarm()
            return Rounds.median(overheads)
        }
        let (value, limit) = rounds.medians
        return [
            Measurement(
                "hold-stops", .count, value: Rounds.median(stops), limit: 2, unit: "stops",
                goal: .met(Rounds.median(stops) <= 2 && Rounds.median(steps) <= 1, "2 stops and a step")),
            Measurement("hold-time", .time, value: value * 1e3, limit: limit * 1e3, unit: "ms"),
        ]
    }
}
