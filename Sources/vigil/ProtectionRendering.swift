import Introspection
import Protections

extension JSONRendering {
    static func protection(_ event: ProtectionEvent) -> JSONLine {
        switch event {
        case .armed(let kinds, let request):
            var line = JSONLine(event: "protections-armed")
            line.add("protections", kinds.map(\.rawValue))
            line.add("request", request?.number)
            return line
        case .disarmed(let kinds, let request):
            var line = JSONLine(event: "protections-disarmed")
            line.add("protections", kinds.map(\.rawValue))
            line.add("request", request.number)
            return line
        case .violation(let violation):
            var line = JSONLine(event: "violation")
            line.add("protection", violation.protection.rawValue)
            line.add("what", violation.what)
            line.add("where", hex(violation.address.rawValue))
            return line
        case .refused(let reason):
            var line = JSONLine(event: "refused")
            line.add("reason", reason)
            return line
        }
    }
}

extension TextRendering {
    static func protection(_ event: ProtectionEvent) -> String {
        switch event {
        case .armed(let kinds, let request):
            "protected" + (request.map { " again after #\($0.number)" } ?? "") + ": \(list(kinds))"
        case .disarmed(let kinds, let request): "#\(request.number) protection is off until it is over: \(list(kinds))"
        case .violation(let violation):
            "VIOLATION of \(violation.protection.rawValue): \(violation.what), at \(violation.address)"
        case .refused(let reason): "refused: \(reason)"
        }
    }

    private static func list(_ kinds: [ProtectionKind]) -> String { kinds.map(\.rawValue).joined(separator: ", ") }
}
