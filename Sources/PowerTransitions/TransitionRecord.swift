import HypervisorInterface

/// A transition from its request to its outcome: what the guest asked for, held against what the host saw.
struct TransitionRecord {
    let id: RequestID
    let transition: Transition
    /// Its return is watched, so its status will be known.
    var isWatched: Bool
    /// When to give up on an outcome that nothing watches.
    var deadline: Deadline
    private(set) var wasSuspended = false
    private(set) var wasSuspendedToDisk = false

    init(id: RequestID, transition: Transition, isWatched: Bool, deadline: Deadline) {
        self.id = id
        self.transition = transition
        self.isWatched = isWatched
        self.deadline = deadline
    }

    /// Whether this request foretold a host event.
    func foretold(_ event: HostEvent) -> Bool {
        switch (event, transition) {
        case (_, .unknown): event != .reset(byGuest: false) && event != .poweredOff(byGuest: false)
        case (.suspended, .sleep), (.wokeUp, .sleep): true
        // Hybrid sleep: memory goes to disk, then the machine sleeps.
        case (.suspended, .hibernate), (.wokeUp, .hibernate): true
        case (.suspendedToDisk, .hibernate), (.suspendedToDisk, .sleep): true
        case (.reset(byGuest: true), .reboot): true
        case (.poweredOff(byGuest: true), .shutdown), (.poweredOff(byGuest: true), .hibernate): true
        default: false
        }
    }

    mutating func note(_ event: HostEvent) {
        switch event {
        case .suspended: wasSuspended = true
        case .suspendedToDisk: wasSuspendedToDisk = true
        default: break
        }
    }

    /// The result when the function came back with a status. Negative NTSTATUS values are errors.
    func result(status: UInt32) -> TransitionResult {
        if Int32(bitPattern: status) < 0 { return .refused }
        return wasSuspended ? .resumed : .returned
    }

    /// The result when a host event ended the machine, or nil where it does not.
    func result(of event: HostEvent) -> TransitionResult? {
        switch event {
        case .reset: .reset
        case .poweredOff(byGuest: true): wasSuspendedToDisk || transition == .hibernate ? .hibernated : .poweredOff
        case .poweredOff(byGuest: false): .poweredOff
        default: nil
        }
    }
}
