/// `POWER_ACTION` as Windows defines it (Windows Driver Kit, wdm.h).
public enum PowerAction: UInt32, CaseIterable, Sendable {
    case none = 0
    case reserved = 1
    case sleep = 2
    case hibernate = 3
    case shutdown = 4
    case shutdownReset = 5
    case shutdownOff = 6
    case warmEject = 7
    case displayOff = 8

    /// The name in Windows' headers.
    public var windowsName: String {
        switch self {
        case .none: "PowerActionNone"
        case .reserved: "PowerActionReserved"
        case .sleep: "PowerActionSleep"
        case .hibernate: "PowerActionHibernate"
        case .shutdown: "PowerActionShutdown"
        case .shutdownReset: "PowerActionShutdownReset"
        case .shutdownOff: "PowerActionShutdownOff"
        case .warmEject: "PowerActionWarmEject"
        case .displayOff: "PowerActionDisplayOff"
        }
    }
}

/// `SYSTEM_POWER_STATE` as Windows defines it (Windows Driver Kit, wdm.h).
public enum SystemPowerState: UInt32, CaseIterable, Sendable {
    case unspecified = 0
    case working = 1
    case sleeping1 = 2
    case sleeping2 = 3
    case sleeping3 = 4
    case hibernate = 5
    case shutdown = 6
    case maximum = 7

    /// The name in Windows' headers.
    public var windowsName: String {
        switch self {
        case .unspecified: "PowerSystemUnspecified"
        case .working: "PowerSystemWorking"
        case .sleeping1: "PowerSystemSleeping1"
        case .sleeping2: "PowerSystemSleeping2"
        case .sleeping3: "PowerSystemSleeping3"
        case .hibernate: "PowerSystemHibernate"
        case .shutdown: "PowerSystemShutdown"
        case .maximum: "PowerSystemMaximum"
        }
    }
}

/// What a power request will do to the guest.
public enum Transition: String, CaseIterable, Sendable {
    case unknown
    case sleep
    case hibernate
    case reboot
    case shutdown

    /// Classifies the arguments of a call of NtSetSystemPowerState.
    ///
    /// The table is that of the original's `IntWinPowFromGuestToIntroPowState`; the first rule that fits wins.
    /// A shutdown whose state is hibernation is Windows' fast startup: it hibernates.
    /// `unknown` is a statement about the arguments, not a licence to ignore the request.
    public init(action: UInt32, minimumState: UInt32) {
        let action = PowerAction(rawValue: action)
        let state = SystemPowerState(rawValue: minimumState)
        switch (action, state) {
        case (.shutdown, let state) where state != .hibernate, (.shutdownOff, let state) where state != .hibernate:
            self = .shutdown
        case (.shutdownReset, _):
            self = .reboot
        case (.sleep, .sleeping1), (.sleep, .sleeping2), (.sleep, .sleeping3):
            self = .sleep
        case (.sleep, .hibernate), (.hibernate, .hibernate), (.shutdown, .hibernate), (.shutdownOff, .hibernate):
            self = .hibernate
        default:
            self = .unknown
        }
    }
}
