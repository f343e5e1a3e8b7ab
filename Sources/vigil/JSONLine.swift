import Foundation

/// One JSON object, written on one line, its members in the order they were added.
struct JSONLine {
    private var members: [String] = []

    /// Begins with the event's name and the time, as every line of Vigil's does.
    init(event: String, at time: Date = Date()) {
        add("event", event)
        add("timestamp", Self.time(time))
    }

    /// A point in time: UTC, ISO 8601, to the millisecond.
    static func time(_ time: Date) -> String {
        time.formatted(
            .iso8601.year().month().day().time(includingFractionalSeconds: true).timeZone(separator: .omitted))
    }

    /// Adds a member; nil becomes null.
    mutating func add(_ name: String, _ value: (some Encodable)?) {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.withoutEscapingSlashes, .sortedKeys]
        let text = value.flatMap { try? encoder.encode($0) }.map { String(decoding: $0, as: UTF8.self) } ?? "null"
        members.append("\"\(name)\":\(text)")
    }

    var text: String { "{" + members.joined(separator: ",") + "}" }
}

/// An address or status, as text: `0x` and hexadecimal digits.
func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

/// An NTSTATUS as Windows' headers write it.
func ntstatus(_ value: UInt32) -> String {
    let digits = String(value, radix: 16, uppercase: true)
    return "0x" + String(repeating: "0", count: 8 - digits.count) + digits
}

extension Duration {
    var microseconds: Int64 { components.seconds * 1_000_000 + components.attoseconds / 1_000_000_000_000 }

    /// For people: "740 µs", "12.3 ms", "1.52 s".
    var readable: String {
        let count = Double(microseconds)
        return switch count {
        case ..<1000: "\(microseconds) µs"
        case ..<1_000_000: String(format: "%.1f ms", count / 1000)
        default: String(format: "%.2f s", count / 1_000_000)
        }
    }
}
