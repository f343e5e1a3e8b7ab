/// Two things measured turn and turn about, so that whatever else the machine does meets both.
struct Rounds {
    /// How often each side is measured.
    var count: Int
    private(set) var first: [Double] = []
    private(set) var second: [Double] = []

    init(_ count: Int) { self.count = count }

    /// Measures A B, B A, A B, …; each closure returns its figure.
    mutating func measure(_ a: () throws -> Double, against b: () throws -> Double) rethrows {
        for round in 0..<count {
            if round % 2 == 0 {
                first.append(try a())
                second.append(try b())
            } else {
                second.append(try b())
                first.append(try a())
            }
        }
    }

    /// The medians of both sides.
    var medians: (Double, Double) { (Self.median(first), Self.median(second)) }

    static func median(_ values: [Double]) -> Double {
        let sorted = values.sorted()
        guard let last = sorted.indices.last else { return .nan }
        return (sorted[last / 2] + sorted[(last + 1) / 2]) / 2
    }
}

extension Duration {
    var inSeconds: Double { Double(components.seconds) + Double(components.attoseconds) * 1e-18 }
    var inMicroseconds: Double { inSeconds * 1e6 }
}

/// How long `body` took, in seconds.
func seconds(_ body: () throws -> Void) rethrows -> Double { try ContinuousClock().measure(body).inSeconds }

/// The same numbers in every run.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    /// SplitMix64.
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var value = state
        value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
        value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
        return value ^ (value >> 31)
    }
}

/// Why a benchmark could not be run.
struct BenchmarkError: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}
