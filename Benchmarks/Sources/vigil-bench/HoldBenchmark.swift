import Detours

/// Holding the caller of a refused request: how often the guest stops for it, and how much longer it takes than asked.
/// Both ways of waiting: in the handler, and in the guest's own delay function, which costs two more steps.
enum HoldBenchmark {
    static let inHandler = benchmark("hold-stops", "hold-time", .handler, steps: 1)
    static let inDelay = benchmark("hold-delay-stops", "hold-delay-time", .delay, steps: 3)

    private static func benchmark(
        _ stopsName: String, _ timeName: String, _ waiting: WaitingWay, steps expectedSteps: Double
    ) -> Benchmark {
        Benchmark(names: [stopsName, timeName]) { context in
            let guest = try context.guest()
            let entry = try guest.address(of: "NtSetSystemPowerState")
            let command = context.guardianCommand
            let hold = 100
            let calls = context.quick ? 2 : 5
            try guest.machine.console.run("refuse on")
            defer { _ = try? guest.machine.console.run("refuse off") }

            // The function's page is there from then on, and a step over its entry is one step.
            try guest.machine.console.run("power kernel 5 6 0")
            var stops: [Double] = []
            var steps: [Double] = []
            var rounds = Rounds(context.quick ? 2 : 5)
            try rounds.measure {
                let session = try Session(guest, guardianCommand: command, hold: .milliseconds(hold), waiting: waiting)
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
                        guard ContinuousClock.now < deadline else {
                            throw BenchmarkError("the held call did not return")
                        }
                        try client.goOn(within: 5)
                    }
                }
                try client.disarm()
                return Rounds.median(overheads)
            }
            let (value, limit) = rounds.medians
            return [
                Measurement(
                    stopsName, .count, value: Rounds.median(stops), limit: 2, unit: "stops",
                    goal: .met(
                        Rounds.median(stops) <= 2 && Rounds.median(steps) <= expectedSteps,
                        expectedSteps == 1 ? "2 stops and a step" : "2 stops and \(Int(expectedSteps)) steps")),
                Measurement(timeName, .time, value: value * 1e3, limit: limit * 1e3, unit: "ms"),
            ]
        }
    }
}
