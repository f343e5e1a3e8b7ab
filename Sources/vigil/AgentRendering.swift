import Agents
import Introspection

extension JSONRendering {
    static func agent(_ event: AgentEvent) -> JSONLine {
        switch event {
        case .deployed(let name, let base, let size, let duration, let place):
            var line = JSONLine(event: "agent-deployed")
            line.add("agent", name)
            line.add("address", hex(base.rawValue))
            line.add("bytes", size)
            line.add("microseconds", duration.microseconds)
            line.add("how", place.rawValue)
            return line
        case .withdrawn(let name, let duration, let way):
            var line = JSONLine(event: "agent-withdrawn")
            line.add("agent", name)
            line.add("microseconds", duration.microseconds)
            line.add("how", way.name)
            return line
        case .neutralised(let name, let base, let reason):
            var line = JSONLine(event: "agent-neutralised")
            line.add("agent", name)
            line.add("address", hex(base.rawValue))
            line.add("reason", reason)
            return line
        case .failed(let name, let reason):
            var line = JSONLine(event: "agent-failed")
            line.add("agent", name)
            line.add("reason", reason)
            return line
        case .report(let name, let message): return agent(name, message)
        }
    }

    private static func agent(_ name: String, _ message: AgentReport) -> JSONLine {
        switch message {
        case .translationChanged(let change):
            var line = JSONLine(event: "translation-changed")
            line.add("agent", name)
            line.add("page", hex(change.page.rawValue))
            line.add("level", change.level)
            line.add("old", hex(change.old))
            line.add("new", hex(change.new))
            line.add("writer", hex(change.writer.rawValue))
            line.add("atOnce", change.isAtOnce)
            return line
        case .stalled(let gap):
            var line = JSONLine(event: "guest-stalled")
            line.add("agent", name)
            line.add("microseconds", gap.microseconds)
            return line
        case .lost(let count):
            var line = JSONLine(event: "reports-lost")
            line.add("agent", name)
            line.add("count", count)
            return line
        }
    }
}

extension TextRendering {
    static func agent(_ event: AgentEvent) -> String {
        switch event {
        case .deployed(let name, let base, let size, let duration, let place):
            "agent \(name) deployed at \(base) (\(size) bytes) in \(duration.readable), on the thread of \(place.words)"
        case .withdrawn(let name, let duration, let way):
            "agent \(name) withdrawn in \(duration.readable): \(way.words)"
        case .neutralised(let name, let base, let reason):
            "agent \(name) neutralised: nothing leads to it any more, its memory at \(base) stays: \(reason)"
        case .failed(let name, let reason): "agent \(name) not deployed: \(reason)"
        case .report(let name, .translationChanged(let change)):
            "\(name): the translation of \(change.page) changed at level \(change.level), from \(hex(change.old)) to "
                + "\(hex(change.new)), by the instruction before \(change.writer)"
                + (change.isAtOnce ? ", which has not gone on yet" : "")
        case .report(let name, .stalled(let gap)): "\(name): no thread of the guest ran for \(gap.readable)"
        case .report(let name, .lost(let count)): "\(name): \(count) reports were lost"
        }
    }
}

extension WithdrawalWay {
    /// As scripts see it.
    var name: String {
        switch self {
        case .freed(let place): place.rawValue
        case .byItself: "by-itself"
        case .zeroed: "zeroed"
        }
    }

    var words: String {
        switch self {
        case .freed(let place): "freed on the thread of \(place.words)"
        case .byItself: "it left by itself"
        case .zeroed: "its pages were zeroed, for the guest is crashing"
        }
    }
}

extension BorrowingPlace {
    var words: String {
        switch self {
        case .powerCall: "the power request's caller"
        case .systemCall: "a system call"
        }
    }
}
