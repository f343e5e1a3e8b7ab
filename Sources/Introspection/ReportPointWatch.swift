import Detours
import GuestMemory
import HypervisorInterface
import X86

/// Has vCPUs stopped that have changed the translation of a watched page, so that the change is told at once: by an
/// execution breakpoint on the page-table filter's report point, as long as a debug register can be had for it.
///
/// The power path, and whatever else may not do without a register, takes it away at any time. Reports come by the
/// filter's ring then.
final class ReportPointWatch {
    /// For how long a register may be missing before that is said: calls of the power function come and go.
    static let patience = Duration.seconds(1)
    /// How often a register is looked for meanwhile.
    private static let interval = Duration.milliseconds(20)

    private let debugRegisters: DebugRegisterTable
    private let warn: (String) -> Void
    private let now: () -> Deadline
    private var point: GuestVirtualAddress?
    private var missingSince: Deadline?
    private var hasWarned = false

    init(
        _ debugRegisters: DebugRegisterTable, now: @escaping () -> Deadline = { ContinuousClock.now },
        warn: @escaping (String) -> Void
    ) {
        self.debugRegisters = debugRegisters
        self.now = now
        self.warn = warn
    }

    /// Follows where the report point is, and says when to come again.
    /// - Parameter wanted: where the breakpoint is to be; nil for nowhere.
    func tick(_ wanted: GuestVirtualAddress?) throws(DetourError) -> Deadline? {
        if isSet, point != wanted { try set { () throws(HypervisorError) in try debugRegisters.release(.reportPoint) } }
        guard let wanted, !isSet else {
            missingSince = nil
            return nil
        }
        if debugRegisters.hasRegister(for: .reportPoint) {
            try set { () throws(HypervisorError) in
                if try debugRegisters.acquire(.reportPoint, .execution(wanted)) { point = wanted }
            }
            if isSet {
                missingSince = nil
                hasWarned = false
                return nil
            }
        }
        let since = missingSince ?? now()
        missingSince = since
        if !hasWarned, now() - since >= Self.patience {
            hasWarned = true
            warn("no debug register is left to report changes of translations at once: they come a moment later")
        }
        return now() + Self.interval
    }

    /// Whether a vCPU stands at the report point because of this.
    func isArrival(_ registers: Registers) -> Bool { isSet && registers.rip == point?.rawValue }

    /// The numbers of the reports whose vCPUs stand there. The machine stands.
    func standingReports() throws(DetourError) -> Set<UInt64> {
        try control { () throws(HypervisorError) in
            let machine = debugRegisters.effects.machine
            var reports: Set<UInt64> = []
            for index in 0..<machine.vcpuCount {
                let registers = try machine.registers(of: VCPU(index))
                if isArrival(registers) { reports.insert(registers.rax) }
            }
            return reports
        }
    }

    /// Lets a vCPU go on that stands there. The machine stands.
    func stepOver(_ vcpu: VCPU) throws(DetourError) {
        guard isSet, let point else { return }
        try control { () throws(HypervisorError) in
            try debugRegisters.effects.stepOver(.execution(point), on: vcpu)
        }
    }

    /// Takes the breakpoint away. The machine stands.
    func release() throws(DetourError) {
        missingSince = nil
        try control { () throws(HypervisorError) in try debugRegisters.release(.reportPoint) }
    }

    private var isSet: Bool { debugRegisters.holds(.reportPoint) }

    private func set(_ body: () throws(HypervisorError) -> Void) throws(DetourError) {
        try control { () throws(HypervisorError) in try debugRegisters.effects.withPaused(body) }
    }
}
