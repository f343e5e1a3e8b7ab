import GuestMemory
import HypervisorInterface
import QEMUHypervisor

/// A breakpoint that every system call of a busy guest meets: from one stop to the next.
enum RoundTripBenchmark {
    static let benchmark = Benchmark(names: ["breakpoint-round-trip"]) { context in
        let guest = try context.guest()
        let address = try guest.address(of: "KiSystemServiceRepeat")
        let command = context.guardianCommand
        let count = context.quick ? 50 : 300
        try guest.machine.console.run("busy on")
        defer { _ = try? guest.machine.console.run("busy off") }

        var rounds = Rounds(context.quick ? 3 : 11)
        try rounds.measure {
            let machine = try guest.connect(guardianCommand: command)
            let effects = GuestEffects(machine: machine)
            let site = BreakpointSite.execution(GuestVirtualAddress(address))
            try effects.takeControl { () throws(HypervisorError) in try effects.insert(site) }
            try goRound(effects, site, 5)
            let time = try seconds { try goRound(effects, site, count) }
            // One more stop may be there already; in it, or in a pause, the breakpoint is removed.
            while try !effects.withPausedUnlessStopped({ () throws(HypervisorError) in try effects.removeAllSites() }) {
                try goRound(effects, site, 1)
            }
            try effects.giveUpControl()
            return time / Double(count)
        } against: {
            let client = try BareClient(guest)
            try client.arm(address)
            try client.roundTrips(5)
            let time = try seconds { try client.roundTrips(count) }
            try client.disarm()
            return time / Double(count)
        }
        let (value, limit) = rounds.medians
        return [
            Measurement(
                "breakpoint-round-trip", .time, value: value * 1e6, limit: limit * 1e6, unit: "us",
                goal: .ratio(1 / 1.2, "within 1.2x"))
        ]
    }

    /// What the engine does at a stop, less what it thinks.
    private static func goRound(_ effects: GuestEffects, _ site: BreakpointSite, _ count: Int) throws {
        var left = count
        while left > 0 {
            guard let event = try effects.machine.nextEvent(until: .now + .seconds(10)) else {
                throw BenchmarkError("no stop at the breakpoint")
            }
            guard case .stop(let stop) = event else { continue }
            effects.noteStop()
            _ = try effects.machine.registers(of: stop.vcpu)
            try effects.stepOver(site, on: stop.vcpu)
            try effects.resumeFromStop()
            left -= 1
        }
    }
}
