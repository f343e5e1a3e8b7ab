import GuestMemory

/// A number that names a vCPU of a machine: 0, 1, …
public struct VCPU: Hashable, Comparable, Sendable, CustomStringConvertible {
    public let index: Int

    public init(_ index: Int) { self.index = index }

    public static func < (a: Self, b: Self) -> Bool { a.index < b.index }

    public var description: String { "vCPU \(index)" }
}

/// Why the machine stands still, every vCPU of it, on Vigil's account.
public enum StopReason: Equatable, Sendable {
    /// A vCPU reached an execution breakpoint, or ended a step.
    case breakpoint
    /// A vCPU accessed a watched address.
    case watchpoint(GuestVirtualAddress)
}

/// A stop that one of Vigil's breakpoints or watchpoints caused. The machine stands until it is resumed.
public struct Stop: Equatable, Sendable {
    /// The vCPU that the hypervisor named. Others may have arrived at breakpoints of their own.
    public var vcpu: VCPU
    public var reason: StopReason

    public init(vcpu: VCPU, reason: StopReason) {
        self.vcpu = vcpu
        self.reason = reason
    }
}

/// Something that happened to the machine as a whole, seen by the host.
public enum HostEvent: Equatable, Sendable {
    /// The guest entered ACPI S3.
    case suspended
    /// The guest woke from ACPI S3.
    case wokeUp
    /// The guest entered ACPI S4; it powers off next.
    case suspendedToDisk
    /// The machine was reset. A firmware may reset again on its way up.
    case reset(byGuest: Bool)
    /// The machine powered off, or its process was told to end.
    case poweredOff(byGuest: Bool)
    /// The guest was asked, by a virtual power button, to shut down.
    case powerButtonPressed
    /// The guest reported a crash.
    case guestPanicked
    /// The operator stopped the machine.
    case stoppedByOperator
    /// The operator started the machine.
    case startedByOperator
}

/// What a machine reports to whoever waits for its next event.
public enum MachineEvent: Equatable, Sendable {
    case stop(Stop)
    case host(HostEvent)
    /// The machine is gone: its process ended or its connections closed. Nothing follows.
    case gone(reason: String)
    /// One of `VirtualMachine.watchedDescriptors` can be read.
    case descriptorReady(Int32)
    /// Somebody asked the wait to end (see `VirtualMachine.wakeDescriptor`).
    case interrupted
}
