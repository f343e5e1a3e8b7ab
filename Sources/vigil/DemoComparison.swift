import Foundation

/// The part of the demo with agents and protections: each transition with the guard off, and with it on.
final class DemoComparison {
    /// How many transitions there are to see.
    static let length = 2 * DemoPassage.allCases.count

    private let renderer: EventRenderer
    private(set) var verdicts: [DemoVerdict] = []

    init(_ renderer: EventRenderer) { self.renderer = renderer }

    var passed: Bool { verdicts.count == Self.length && verdicts.allSatisfy(\.isExpected) }

    func run() throws {
        for isGuarded in [false, true] { try run(isGuarded) }
    }

    private func run(_ isGuarded: Bool) throws {
        renderer.note("")
        renderer.note("With agents and protections armed, and the guard \(isGuarded ? "on" : "off")")
        var setup = DemoLife.Setup()
        setup.isGuarded = isGuarded
        setup.note = renderer.note
        setup.report = renderer.render
        let life = try DemoLife(setup)
        try life.boot()
        // The shutdown comes last: what it leaves is a guest that has booted, like any other.
        for passage in DemoPassage.allCases {
            let verdict = try life.pass(passage, by: "user", comesBack: passage != .shutdown)
            renderer.note("→ \(passage.words), guard \(isGuarded ? "on" : "off"): \(Self.words(verdict))")
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
