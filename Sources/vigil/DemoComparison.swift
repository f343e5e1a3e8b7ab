import BundledGuest
import Foundation

/// The part of the demo with agents and protections: each transition with the guard off, and with it on. In a 32-bit
/// guest, where there are no agents for a guard to take out, once with protections.
final class DemoComparison {
    private let renderer: EventRenderer
    private let architecture: GuestConfiguration.Architecture
    private(set) var verdicts: [DemoVerdict] = []

    init(_ renderer: EventRenderer, _ architecture: GuestConfiguration.Architecture) {
        self.renderer = renderer
        self.architecture = architecture
    }

    private var hasAgents: Bool { architecture == .x64 }
    private var runs: [Bool] { hasAgents ? [false, true] : [true] }

    /// How many transitions there are to see.
    var length: Int { runs.count * DemoPassage.allCases.count }

    var passed: Bool { verdicts.count == length && verdicts.allSatisfy(\.isExpected) }

    func run() throws {
        for isGuarded in runs { try run(isGuarded) }
    }

    private func run(_ isGuarded: Bool) throws {
        renderer.note("")
        let title = "With agents and protections armed, and the guard \(isGuarded ? "on" : "off")"
        renderer.note(hasAgents ? title : "With protections armed")
        var setup = DemoLife.Setup()
        setup.architecture = architecture
        setup.isGuarded = isGuarded
        setup.note = renderer.note
        setup.report = renderer.render
        let life = try DemoLife(setup)
        try life.boot()
        // The shutdown comes last: what it leaves is a guest that has booted, like any other.
        for passage in DemoPassage.allCases {
            let verdict = try life.pass(passage, by: "user", comesBack: passage != .shutdown)
            let name = hasAgents ? "\(passage.words), guard \(isGuarded ? "on" : "off")" : passage.words
            renderer.note("→ \(name): \(Self.words(verdict))")
            verdicts.append(verdict)
            if case .result = verdict.end { continue }
            try life.boot()
        }
    }

    private static func words(_ verdict: DemoVerdict) -> String {
        var text = verdict.end.words + (verdict.isExpected ? "" : ", which was not expected")
        if let away = verdict.away { text += "; agents left within \(away.readable)" }
        if let back = verdict.back { text += ", and were back after \(back.readable)" }
        for problem in verdict.problems { text += "; \(problem)" }
        return text
    }

    /// The transitions, and what became of the guest.
    var table: [String] {
        func cell(_ passage: DemoPassage, _ isGuarded: Bool) -> String {
            guard let verdict = verdicts.first(where: { $0.passage == passage && $0.isGuarded == isGuarded }) else {
                return "✗ not tried"
            }
            return (verdict.isExpected ? "✓ " : "✗ ") + verdict.end.words
        }
        guard hasAgents else {
            let width = DemoPassage.allCases.map(\.words.count).max() ?? 0
            return ["With protections armed:", ""]
                + DemoPassage.allCases.map { passage in
                    "  " + passage.words.padding(toLength: width + 2, withPad: " ", startingAt: 0) + cell(passage, true)
                }
        }
        let rows =
            [("", "guard off", "guard on")]
            + DemoPassage.allCases.map { ($0.words, cell($0, false), cell($0, true)) }
        let widths = (rows.map(\.0.count).max() ?? 0, rows.map(\.1.count).max() ?? 0)
        return ["With agents in the guest and protections armed:", ""]
            + rows.map { row in
                "  " + row.0.padding(toLength: widths.0 + 2, withPad: " ", startingAt: 0)
                    + row.1.padding(toLength: widths.1 + 2, withPad: " ", startingAt: 0) + row.2
            }
    }
}
