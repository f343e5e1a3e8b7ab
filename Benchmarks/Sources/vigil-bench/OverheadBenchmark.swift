/// A guest's system calls each second, with Vigil armed and with nothing but its breakpoint.
enum OverheadBenchmark {
    static let benchmark = Benchmark(names: ["armed-overhead"]) { context in
        let guest = try context.guest()
        let entry = try guest.address(of: "NtSetSystemPowerState")
        let command = context.guardianCommand
        let count = context.quick ? 100_000 : 1_000_000

        func work() throws -> Double {
            // Once beforehand: a new breakpoint makes QEMU translate the code anew.
            try guest.machine.console.run("work \(count / 10)")
            return Double(count) / (try seconds { try guest.machine.console.run("work \(count)") })
        }

        var rounds = Rounds(context.quick ? 3 : 25)
        try rounds.measure {
            let session = try Session(guest, guardianCommand: command)
            let rate = try work()
            try session.end()
            return rate
        } against: {
            let client = try BareClient(guest)
            try client.arm(entry)
            let rate = try work()
            try client.disarm()
            return rate
        }
        let (value, limit) = rounds.medians
        return [
            Measurement(
                "armed-overhead", .rate, value: value / 1e6, limit: limit / 1e6, unit: "M/s",
                goal: .ratio(0.95, "as with a bare breakpoint"))
        ]
    }
}
