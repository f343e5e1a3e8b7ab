import PowerTransitions

/// One of the ways in which the demo's guest goes down, or does not.
enum DemoPassage: String, CaseIterable, Encodable {
    case sleep
    case hybridSleep = "hybrid-sleep"
    case hibernation
    case reboot
    case refusal = "refused-request"
    case shutdown

    /// As people read it.
    var words: String {
        switch self {
        case .sleep: "sleep"
        case .hybridSleep: "hybrid sleep"
        case .hibernation: "hibernation, and its resume"
        case .reboot: "reboot"
        case .refusal: "a request that is refused"
        case .shutdown: "shutdown"
        }
    }

    /// What the guest's console is told to do.
    func command(by caller: String) -> String {
        let arguments =
            switch self {
            case .sleep: "2 4 0"
            case .hybridSleep: "2 5 0"
            case .hibernation: "3 5 0"
            case .reboot: "5 6 0"
            case .refusal, .shutdown: "6 6 0"
            }
        return "power \(caller) \(arguments)"
    }

    /// What Vigil reports of a guest that survives it.
    var result: TransitionResult {
        switch self {
        case .sleep, .hybridSleep: .resumed
        case .hibernation: .hibernated
        case .reboot: .reset
        case .refusal: .refused
        case .shutdown: .poweredOff
        }
    }

    /// The guest has to be woken.
    var isSleep: Bool { self == .sleep || self == .hybridSleep }
    /// The call returns in the same QEMU.
    var returns: Bool { isSleep || self == .refusal }
    /// Protection is switched off for it.
    var disarmsProtections: Bool { self == .hybridSleep || self == .hibernation }
    /// Its end, with agents left in the guest: the guest checks its code when it comes back, and a hybrid sleep takes
    /// the memory away that they are in.
    var endsUnguarded: Bool { isSleep || self == .hibernation }
}

/// What became of a guest that was asked for a transition.
struct DemoVerdict: Encodable {
    enum End: Equatable, Encodable {
        /// As Vigil reported it.
        case result(TransitionResult)
        /// The guest's own.
        case bugCheck(UInt32)
        /// Nothing that was to be expected.
        case unclear(String)

        var words: String {
            switch self {
            case .result(let result): result.rawValue
            case .bugCheck(let code): "bug check \(hex(UInt64(code)))"
            case .unclear(let what): what
            }
        }

        func encode(to encoder: any Encoder) throws {
            var container = encoder.singleValueContainer()
            try container.encode(words)
        }
    }

    var passage: DemoPassage
    var isGuarded: Bool
    var end: End
    /// What was not as it should be.
    var problems: [String] = []
    /// How long agents took to leave, and to be back. Of agents that were withdrawn and deployed.
    var away: Duration?
    var back: Duration?

    var isBugCheck: Bool { if case .bugCheck = end { true } else { false } }

    var isUnclear: Bool { if case .unclear = end { true } else { false } }

    /// It went as it had to.
    var isExpected: Bool {
        guard problems.isEmpty else { return false }
        if !isGuarded && passage.endsUnguarded { return isBugCheck }
        return end == .result(passage.result)
    }

    private enum CodingKeys: String, CodingKey {
        case transition
        case guarded = "guard"
        case end, passed, problems
    }

    func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(passage, forKey: .transition)
        try container.encode(isGuarded ? "on" : "off", forKey: .guarded)
        try container.encode(end, forKey: .end)
        try container.encode(isExpected, forKey: .passed)
        try container.encode(problems, forKey: .problems)
    }
}
