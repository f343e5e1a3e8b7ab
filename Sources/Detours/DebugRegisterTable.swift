import GuestMemory
import HypervisorInterface

/// Who holds which of the processor's debug registers.
///
/// There are four on every vCPU (Intel SDM volume 3, 17.2), and every vCPU's are the same here. A machine
/// with out-of-band breakpoints has no such limit, but is held to it too: what works there works under KVM.
public final class DebugRegisterTable {
    /// Why a register is in use.
    public enum Purpose: Hashable, Sendable {
        /// The intercepted function's entry.
        case entry
        /// The return of a call, by the caller's stack slot.
        case returnWatch(stackSlot: UInt64)
        /// Where a thread is borrowed for a call of Vigil's.
        case injection
        /// Where the guest comes by when it crashes.
        case bugCheck
        /// Where a change of a watched translation is told at once.
        case reportPoint
        /// Who writes a page-table entry.
        case entryWatch(GuestVirtualAddress)

        /// A register that is in use for this is given up where there is none left for what is not.
        var isExpendable: Bool {
            switch self {
            case .bugCheck, .reportPoint, .entryWatch: true
            case .entry, .returnWatch, .injection: false
            }
        }
    }

    public struct Assignment: Hashable, Sendable {
        public var purpose: Purpose
        public var site: BreakpointSite
    }

    public let effects: GuestEffects
    public private(set) var registers: [Assignment?]

    public init(_ effects: GuestEffects) {
        self.effects = effects
        registers = Array(repeating: nil, count: min(4, effects.machine.breakpointCapacity))
    }

    /// How many registers are in use. Never more than four.
    public var inUse: Int { registers.count { $0 != nil } }

    /// Whether a purpose has a register.
    public func holds(_ purpose: Purpose) -> Bool { registers.contains { $0?.purpose == purpose } }

    /// Whether any access is watched.
    public var watchesAccesses: Bool {
        registers.contains { if case .access = $0?.site { true } else { false } }
    }

    /// Takes a register and sets the site: a free one, or else one that is in use for something expendable.
    /// - Returns: false where there is none to be had, or the site is set already.
    public func acquire(_ purpose: Purpose, _ site: BreakpointSite) throws(HypervisorError) -> Bool {
        guard !registers.contains(where: { $0?.site == site }) else { return false }
        if !registers.contains(nil), !purpose.isExpendable,
            let given = registers.compactMap({ $0?.purpose }).last(where: \.isExpendable)
        {
            try release(given)
        }
        guard let free = registers.firstIndex(of: nil) else { return false }
        try effects.insert(site)
        registers[free] = Assignment(purpose: purpose, site: site)
        return true
    }

    /// Gives a purpose that has a register another site in it. The machine stands.
    public func move(_ purpose: Purpose, to site: BreakpointSite) throws(HypervisorError) {
        guard let index = registers.firstIndex(where: { $0?.purpose == purpose }), let used = registers[index],
            used.site != site
        else { return }
        try effects.remove(used.site)
        registers[index] = nil
        try effects.insert(site)
        registers[index] = Assignment(purpose: purpose, site: site)
    }

    /// Clears the site of a purpose, if it has one.
    public func release(_ purpose: Purpose) throws(HypervisorError) {
        guard let index = registers.firstIndex(where: { $0?.purpose == purpose }), let used = registers[index] else {
            return
        }
        try effects.remove(used.site)
        registers[index] = nil
    }

    /// Clears all.
    public func releaseAll() throws(HypervisorError) {
        for index in registers.indices {
            guard let used = registers[index] else { continue }
            try effects.remove(used.site)
            registers[index] = nil
        }
    }
}
