import ArgumentParser
import BundledGuest
import Foundation

/// All transitions in random order, over and over, with agents and protections: a line for each, and how it ended.
struct DemoRounds {
    let rounds: Int
    let seed: UInt64
    let architecture: GuestConfiguration.Architecture
    let processors: Int
    /// Agents are taken out before transitions.
    let isGuarded: Bool
    let renderer: EventRenderer
    let format: OutputFormat

    func run() throws {
        var random = SplitMix(state: seed)
        var setup = DemoLife.Setup()
        setup.architecture = architecture
        setup.processors = processors
        setup.isGuarded = isGuarded
        let life = try DemoLife(setup)
        var verdicts: [DemoVerdict] = []
        try life.boot()
        rounds: for round in 1...rounds {
            for passage in DemoPassage.allCases.shuffled(using: &random) {
                let caller = Bool.random(using: &random) ? "user" : "kernel"
                let start = ContinuousClock.now
                let verdict = try life.pass(passage, by: caller)
                verdicts.append(verdict)
                renderer.print(line: line(round, verdict, caller, .now - start))
                // The guest is gone.
                guard case .result = verdict.end else { break rounds }
            }
        }
        try life.endGuest()
        let last = verdicts.last
        let passed =
            isGuarded
            ? verdicts.allSatisfy(\.isExpected) && verdicts.count == rounds * DemoPassage.allCases.count
            : last?.isBugCheck == true
        renderer.print(line: summary(verdicts, passed))
        if !passed { throw VigilExit.demoFailed.exitCode }
    }

    private func isGood(_ verdict: DemoVerdict) -> Bool { isGuarded ? verdict.isExpected : !verdict.isUnclear }

    private func line(_ round: Int, _ verdict: DemoVerdict, _ caller: String, _ duration: Duration) -> String {
        switch format {
        case .json:
            var line = JSONLine(event: "demo-round")
            line.add("round", round)
            line.add("transition", verdict.passage)
            line.add("caller", caller)
            line.add("end", verdict.end)
            line.add("passed", isGood(verdict))
            line.add("problems", verdict.problems)
            line.add("awayMicroseconds", verdict.away?.microseconds)
            line.add("backMicroseconds", verdict.back?.microseconds)
            line.add("microseconds", duration.microseconds)
            return line.text
        case .text:
            let name = "\(verdict.passage.rawValue) by \(caller)".padding(toLength: 26, withPad: " ", startingAt: 0)
            var text = "\(isGood(verdict) ? "✓" : "✗") round \(round)  \(name)  \(verdict.end.words)"
            if let away = verdict.away { text += "; agents left within \(away.readable)" }
            if let back = verdict.back { text += ", back after \(back.readable)" }
            return ([text] + verdict.problems.map { "    \($0)" }).joined(separator: "\n")
        }
    }

    private func summary(_ verdicts: [DemoVerdict], _ passed: Bool) -> String {
        let crash = verdicts.last { $0.isBugCheck }
        switch format {
        case .json:
            var line = JSONLine(event: "demo-rounds-summary")
            line.add("rounds", rounds)
            line.add("seed", seed)
            line.add("architecture", architecture.rawValue)
            line.add("vcpus", processors)
            line.add("guard", isGuarded ? "on" : "off")
            line.add("transitions", verdicts.count)
            line.add("asExpected", verdicts.count(where: isGood))
            line.add("bugCheck", crash?.end)
            line.add("bugCheckIn", crash?.passage)
            line.add("passed", passed)
            return line.text
        case .text:
            let counts = "\(verdicts.count) transitions, \(verdicts.count(where: isGood)) as expected"
            let end = crash.map { "\($0.end.words) in \($0.passage.words)" } ?? "no bug check"
            let guardWords = architecture == .x64 ? ", guard \(isGuarded ? "on" : "off")" : ""
            return "\n\(counts); \(end). \(architecture.rawValue), seed \(seed), \(processors) vCPUs\(guardWords)."
        }
    }
}

/// The same numbers for the same seed, everywhere: splitmix64.
private struct SplitMix: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
}
