/// From connecting to armed, and how long the guest stood still for it, by the times of QEMU's own events.
enum AttachBenchmark {
    static let benchmark = Benchmark(names: ["attach-paused", "attach-total"]) { context in
        let guest = try context.guest()
        let entry = try guest.address(of: "NtSetSystemPowerState")
        let command = context.guardianCommand
        try Session(guest, guardianCommand: command).end()

        var total = Rounds(context.quick ? 3 : 15)
        var standing: (vigil: [Double], bare: [Double]) = ([], [])
        try total.measure {
            let observer = try BareClient(guest)
            var session: Session?
            let time = try seconds { session = try Session(guest, guardianCommand: command) }
            standing.vigil.append(try observer.timeStoodStill())
            try session?.end()
            return time
        } against: {
            var client: BareClient?
            let time = try seconds {
                let new = try BareClient(guest)
                try new.arm(entry)
                client = new
            }
            if let client {
                standing.bare.append(try client.timeStoodStill())
                try client.disarm()
            }
            return time
        }
        let (value, limit) = total.medians
        return [
            Measurement(
                "attach-paused", .time, value: Rounds.median(standing.vigil) * 1e3,
                limit: Rounds.median(standing.bare) * 1e3, unit: "ms", goal: .atMost(2, "at most 2 ms")),
            Measurement("attach-total", .time, value: value * 1e3, limit: limit * 1e3, unit: "ms"),
        ]
    }
}
