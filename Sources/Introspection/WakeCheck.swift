import GuestMemory
import HypervisorInterface

/// After a wake from sleep, finds out what the machine lacks since.
///
/// A machine resets its devices on waking, and the guest's firmware sets them up anew. So they are looked at when
/// the guest's kernel is back; that nothing tells, either.
struct WakeCheck {
    /// How often a guest on its way up is looked at.
    static let interval = Duration.milliseconds(50)

    private var isPending = false

    /// When to look the next time.
    var nextLook: Deadline? { isPending ? .now + Self.interval : nil }

    mutating func note(_ event: HostEvent) {
        switch event {
        case .wokeUp: isPending = true
        case .suspended, .reset, .poweredOff, .guestPanicked: isPending = false
        default: break
        }
    }

    /// Looks, where there was a wake.
    /// - Returns: a sentence for the user, once for a wake; nil where nothing is missing, or is not known yet.
    mutating func look(_ machine: any VirtualMachine) -> String? {
        guard isPending else { return nil }
        do throws(HypervisorError) {
            guard try machine.processorTables().contains(where: Self.isInKernel) else { return nil }
            isPending = false
            return try machine.lossByWaking()
        } catch {
            // The session does not depend on it, and what is wrong with the machine will show.
            isPending = false
            return nil
        }
    }

    /// No firmware has its interrupt table in the upper half of the address space.
    private static func isInKernel(_ tables: ProcessorTables) -> Bool {
        tables.control.pagingEnabled && PagingMode(tables.control).isInKernelHalf(tables.idtBase)
    }
}
