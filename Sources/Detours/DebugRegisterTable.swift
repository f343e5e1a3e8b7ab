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

        /// Where there is no register left, one that is in use for a lower rank is given up. The power path is above all,
        /// and who is only being looked for, for a while, below.
        var rank: Int {
            switch self {
            case .entryWatch: 0
            case .bugCheck, .reportPoint: 1
            case .entry, .returnWatch, .injection: 2
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

    /// What gives its register up for a purpose: the last of those of the lowest rank, if that is lower.
    private func given(for purpose: Purpose) -> Purpose? {
        let used = registers.compactMap { $0?.purpose }
        guard let lowest = used.map(\.rank).min(), lowest < purpose.rank else { return nil }
        return used.last { $0.rank == lowest }
    }

    /// Whether a register can be had for a purpose now.
    public func hasRegister(for purpose: Purpose) -> Bool { registers.contains(nil) || given(for: purpose) != nil }

    /// Takes a register and sets the site: a free one, or else one that is in use for something of a lower rank.
    /// - Returns: false where there is none to be had, or the site is set already.
    public func acquire(_ purpose: Purpose, _ site: BreakpointSite) throws(HypervisorError) -> Bool {
        guard !registers.contains(where: { $0?.site == site }) else { return false }
        if !registers.contains(nil), let given = given(for: purpose) { try release(given) }
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
