import GuestMemory
import HypervisorInterface
import WindowsGuest

/// What is protected. Each is armed and disarmed on its own.
public enum ProtectionKind: String, CaseIterable, Hashable, Sendable {
    /// Code and constants of the kernel and its drivers: their contents, and where they are mapped with which rights.
    case kernelCode = "kernel-code"
    /// The interrupt table of each vCPU.
    case interruptTables = "interrupt-tables"
    /// The tables that system calls go through, and the code that reads them.
    case serviceTables = "service-tables"
    /// The code of chosen processes.
    case userCode = "user-code"
}

/// A difference between what is protected and what it was when it was armed.
public struct Violation: Equatable, Hashable, Sendable {
    public var protection: ProtectionKind
    /// A sentence fragment for people: "3 bytes of ntoskrnl.exe's .text changed".
    public var what: String
    /// Where the difference begins: in the kernel's half, or, of `userCode`, in the process that `what` names.
    public var address: GuestVirtualAddress

    public init(protection: ProtectionKind, what: String, address: GuestVirtualAddress) {
        self.protection = protection
        self.what = what
        self.address = address
    }
}

/// Why protections could not be armed or checked.
public enum ProtectionError: Error, Equatable, Sendable {
    /// Protections are suspended for a power transition: what is protected cannot be changed until it is over.
    case suspended
    /// `userCode` was to be armed without a process's name.
    case noProcess
    /// Something of the kernel that the protection needs is not known.
    case discovery(ProtectionKind, DiscoveryError)
    case hypervisor(HypervisorError)
    /// The guest's RAM is out of reach.
    case memory(MemoryError)
}

extension ProtectionError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .suspended:
            "protections are suspended while the guest goes through a power transition, and cannot be changed now"
        case .noProcess: "user-code protects processes by their names, and none was given"
        case .discovery(let kind, let error): "\(kind.rawValue) cannot protect this guest: \(error)"
        case .hypervisor(let error): error.description
        case .memory(let error): "the guest cannot be checked: \(error)"
        }
    }
}
