import Foundation

/// A figure beside its limit: what a bare C program reached in the same run.
struct Measurement: Encodable {
    enum Kind { case rate, time, count }

    var name: String
    var value: Double
    var unit: String
    var limit: Double
    /// Nearness to the limit: 1 at the limit, 0.5 at half its speed.
    var ratio: Double
    private let goal: Goal?

    /// What the figure is wanted to reach. Missing it is shown, and is no failure.
    enum Goal {
        case ratio(Double, String)
        case atMost(Double, String)
        case met(Bool, String)
    }

    private enum CodingKeys: CodingKey { case name, value, unit, limit, ratio }

    init(_ name: String, _ kind: Kind, value: Double, limit: Double, unit: String, goal: Goal? = nil) {
        self.name = name
        self.value = value
        self.unit = unit
        self.limit = limit
        self.goal = goal
        ratio = kind == .rate ? value / limit : limit / value
    }

    /// The goal in words, and whether it was reached.
    var verdict: String {
        switch goal {
        case .ratio(let least, let words): ratio >= least ? "\(words): yes" : "\(words): NO"
        case .atMost(let most, let words): value <= most ? "\(words): yes" : "\(words): NO"
        case .met(let isMet, let words): isMet ? "\(words): yes" : "\(words): NO"
        case nil: ""
        }
    }
}

/// The table for people and the list for programs.
struct Report {
    private static let columns = [27, 14, 14, 7]
    private(set) var measurements: [Measurement] = []

    static var heading: String { row("benchmark", "measured", "bare C", "ratio", "goal") }

    /// Keeps a measurement.
    /// - Returns: its row of the table.
    mutating func add(_ measurement: Measurement) -> String {
        measurements.append(measurement)
        return Self.row(
            measurement.name, Self.text(measurement.value, measurement.unit),
            Self.text(measurement.limit, measurement.unit), String(format: "%.2f", measurement.ratio),
            measurement.verdict)
    }

    func write(to path: String) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        let file = URL(fileURLWithPath: path)
        try FileManager.default.createDirectory(
            at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
        try (try encoder.encode(measurements) + Data("\n".utf8)).write(to: file, options: .atomic)
    }

    private static func row(
        _ name: String, _ value: String, _ limit: String, _ ratio: String, _ goal: String
    ) -> String {
        func right(_ text: String, _ width: Int) -> String {
            String(repeating: " ", count: max(0, width - text.count)) + text
        }
        let line =
            name.padding(toLength: columns[0], withPad: " ", startingAt: 0) + right(value, columns[1])
            + right(limit, columns[2]) + right(ratio, columns[3]) + "  " + goal
        return line.replacing(#/ +$/#, with: "")
    }

    private static func text(_ value: Double, _ unit: String) -> String {
        String(format: value >= 100 ? "%.0f" : value >= 10 ? "%.1f" : "%.2f", value) + " " + unit
    }
}
