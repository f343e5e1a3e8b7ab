import Agents
import Detours
import Introspection

/// Taking an agent out before a transition: how long the caller is held for it, and how often the guest stops.
/// The limit is as many bare stops.
enum WithdrawalBenchmark {
    static let onPowerCall = benchmark("withdraw-on-rip", .powerCall)
    static let onSystemCall = benchmark("withdraw-on-syscall", .systemCall)

    private static func benchmark(_ name: String, _ place: BorrowingPlace) -> Benchmark {
        let stopsName = name + "-stops"
        return Benchmark(names: [name, stopsName]) { context in
            let guest = try context.guest()
            let dispatcher = try guest.address(of: "KiSystemServiceRepeat")
            let command = context.guardianCommand
            let transitions = context.quick ? 3 : 20
            // A request of the drivers only: the machine stays up.
            let request = "power kernel 7 4 0"
            try guest.machine.console.run("busy on")
            defer { _ = try? guest.machine.console.run("busy off") }

            try guest.machine.console.run(request)
            var stops: [Double] = []
            var withdrawn = 0
            var rounds = Rounds(context.quick ? 2 : 5)
            try rounds.measure {
                let session = try Session(
                    guest, guardianCommand: command, agents: [.heartbeat], withdrawalPlace: place)
                var times: [Double] = []
                for _ in 0..<transitions {
                    try session.next { if case .agent(.deployed) = $0 { () } else { nil } }
                    let number = try guest.machine.console.start(request)
                    let held = try session.next {
                        if case .power(.held(_, let duration, let stops)) = $0 { (duration, stops) } else { nil }
                    }
                    let reason = try session.next {
                        if case .power(.released(_, let reason)) = $0 { reason } else { nil }
                    }
                    _ = try guest.machine.console.reply(to: number)
                    times.append(held.0.inSeconds)
                    stops.append(Double(held.1))
                    if reason == .withdrawn { withdrawn += 1 }
                }
                try session.end()
                return Rounds.median(times)
            } against: {
                let client = try BareClient(guest)
                try client.arm(dispatcher)
                try client.roundTrips(5)
                let count = context.quick ? 50 : 200
                let time = try seconds { try client.roundTrips(count) }
                try client.disarm()
                return time / Double(count)
            }
            let (value, roundTrip) = rounds.medians
            let all = transitions * rounds.count
            return [
                Measurement(
                    name, .time, value: value * 1e6, limit: roundTrip * Rounds.median(stops) * 1e6, unit: "us",
                    goal: .met(withdrawn == all, "withdrawn in \(withdrawn) of \(all)")),
                Measurement(stopsName, .count, value: Rounds.median(stops), limit: 2, unit: "stops"),
            ]
        }
    }
}
