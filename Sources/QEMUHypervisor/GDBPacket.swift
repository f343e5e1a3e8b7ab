/// The framing of GDB's remote serial protocol: `$data#checksum`.
/// Format: "Debugging with GDB", appendix E.1.
enum GDBPacket {
    /// Frames `payload`, which has no byte that needs escaping.
    static func frame(_ payload: String) -> [UInt8] {
        var bytes: [UInt8] = [UInt8(ascii: "$")]
        var sum: UInt8 = 0
        for byte in payload.utf8 {
            sum &+= byte
            bytes.append(byte)
        }
        bytes.append(UInt8(ascii: "#"))
        bytes.append(contentsOf: hex([sum]))
        return bytes
    }

    /// Takes the first whole packet out of `input`, with what stands before it (acknowledgements).
    /// - Returns: the payload with escapes and run lengths undone, or nil where no packet is whole yet.
    static func take(from input: inout [UInt8]) -> [UInt8]? {
        guard let start = input.firstIndex(of: UInt8(ascii: "$")),
            let end = input[start...].firstIndex(of: UInt8(ascii: "#")), end + 2 < input.count
        else { return nil }
        let payload = unescape(input[(start + 1)..<end])
        input.removeSubrange(...(end + 2))
        return payload
    }

    /// Undoes `}` escapes (next byte exclusive-or 0x20) and `*` run lengths (count is the byte less 29).
    static func unescape(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
        var result: [UInt8] = []
        result.reserveCapacity(bytes.count)
        var index = bytes.startIndex
        while index < bytes.endIndex {
            let byte = bytes[index]
            let next = index + 1 < bytes.endIndex ? bytes[index + 1] : nil
            if byte == UInt8(ascii: "}"), let next {
                result.append(next ^ 0x20)
                index += 2
            } else if byte == UInt8(ascii: "*"), let next, next >= 29, let last = result.last {
                result.append(contentsOf: repeatElement(last, count: Int(next) - 29))
                index += 2
            } else {
                result.append(byte)
                index += 1
            }
        }
        return result
    }

    /// Two hexadecimal digits for each byte.
    static func hex(_ bytes: some Sequence<UInt8>) -> [UInt8] {
        let digits = Array("0123456789abcdef".utf8)
        var text: [UInt8] = []
        text.reserveCapacity(bytes.underestimatedCount * 2)
        for byte in bytes {
            text.append(digits[Int(byte >> 4)])
            text.append(digits[Int(byte & 15)])
        }
        return text
    }

    /// The bytes that pairs of hexadecimal digits stand for, or nil where `text` is something else.
    static func bytes(fromHex text: some Collection<UInt8>) -> [UInt8]? {
        guard text.count % 2 == 0 else { return nil }
        var result: [UInt8] = []
        result.reserveCapacity(text.count / 2)
        var high: UInt8?
        for character in text {
            let digit: UInt8
            switch character {
            case UInt8(ascii: "0")...UInt8(ascii: "9"): digit = character - UInt8(ascii: "0")
            case UInt8(ascii: "a")...UInt8(ascii: "f"): digit = character - UInt8(ascii: "a") + 10
            case UInt8(ascii: "A")...UInt8(ascii: "F"): digit = character - UInt8(ascii: "A") + 10
            default: return nil
            }
            if let first = high {
                result.append(first << 4 | digit)
                high = nil
            } else {
                high = digit
            }
        }
        return result
    }
}

/// Why the stub says that the machine stands.
enum GDBStopReply: Equatable {
    /// A breakpoint, a watchpoint (with its address) or the end of a step, on a thread.
    case trap(thread: Int, watch: UInt64?)
    /// The machine was stopped: by our own interrupt, or by its operator.
    case interrupted
    /// The guest powered off, its process kept (`-no-shutdown`).
    case poweredOff
    /// QEMU's process ends.
    case exited

    /// Parses the payload of a stop reply, or nil where it is none.
    init?(_ payload: [UInt8]) {
        switch payload.first {
        case UInt8(ascii: "W"), UInt8(ascii: "X"):
            self = .exited
        case UInt8(ascii: "T"):
            let text = String(decoding: payload, as: UTF8.self)
            guard let signal = UInt8(text.dropFirst().prefix(2), radix: 16) else { return nil }
            var thread = 1
            var watch: UInt64?
            for field in text.dropFirst(3).split(separator: ";") {
                let parts = field.split(separator: ":", maxSplits: 1)
                guard parts.count == 2 else { continue }
                switch parts[0] {
                case "thread": thread = Int(parts[1], radix: 16) ?? 1
                case "watch", "rwatch", "awatch": watch = UInt64(parts[1], radix: 16)
                default: break
                }
            }
            switch signal {
            case 5: self = .trap(thread: thread, watch: watch)
            case 3: self = .poweredOff
            default: self = .interrupted
            }
        default:
            return nil
        }
    }
}
