import Foundation
import Introspection
import Protections

/// Reads wishes from standard input while Vigil is attached, one a line:
///
///     agent NAME on|off
///     protect KIND on|off [PROCESS…]
///     notice sleep|resume|shut-down|terminating
enum WishReader {
    static let usage =
        "agent NAME on|off, protect KIND on|off [PROCESS...], notice sleep|resume|shut-down|terminating"

    /// Reads on a thread of its own, until the input ends.
    static func start(_ control: EngineControl, complain: @escaping @Sendable (String) -> Void) {
        Thread.detachNewThread {
            while let line = readLine() {
                let words = line.split(separator: " ").map(String.init)
                if words.isEmpty { continue }
                if let wish = Wish(words) {
                    control.post(wish)
                } else {
                    complain("\"\(line)\" is no command; there are: \(usage)")
                }
            }
        }
    }
}

extension Wish {
    init?(_ words: [String]) {
        let isOn = words.count > 2 ? ["on": true, "off": false][words[2]] : nil
        switch words.first {
        case "agent":
            guard words.count == 3, let kind = AgentKind(rawValue: words[1]), let isOn else { return nil }
            self = .agent(kind, isOn)
        case "protect":
            guard words.count >= 3, let kind = ProtectionKind(rawValue: words[1]), let isOn else { return nil }
            self = .protect([kind], processes: Array(words.dropFirst(3)), isOn)
        case "notice":
            guard words.count == 2, let notice = PowerNotice(rawValue: words[1]) else { return nil }
            self = .notice(notice)
        default: return nil
        }
    }
}
