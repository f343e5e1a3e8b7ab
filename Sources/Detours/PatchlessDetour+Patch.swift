import GuestMemory
import HypervisorInterface
import X86

extension PatchlessDetour {
    /// Takes the jump out of the function, if there is one, while callers go on to be intercepted: by the breakpoint
    /// alone, which stands on the function's entry from here on. Callers at the stop point stand there then. The
    /// machine stands.
    /// - Returns: what had to stay in the guest, in words; nil where nothing did.
    public func takeOutPatch() throws(DetourError) -> String? {
        guard let inline, inline.armed != nil else { return nil }
        var left: String?
        do throws(InlineDetourError) {
            if case .handlerKept(let reason) = try inline.takeOut() { left = "the jump's handler stays: \(reason)" }
        } catch {
            guard error.changedNothing else { throw .inline(error) }
            return "the jump stays: \(error)"
        }
        try moveBreakpoint(to: entry)
        return left
    }

    /// Puts the jump back that `takeOutPatch` took out, if it did: once. The breakpoint stands where the jump leads
    /// again. The machine stands.
    /// - Returns: why it was not put back, and callers are intercepted by the breakpoint alone; nil where it was, or
    ///   need not be.
    public func putPatchBack() throws(DetourError) -> String? {
        guard let inline, inline.withdrawn != nil else { return nil }
        do throws(InlineDetourError) {
            try inline.putBack()
        } catch {
            guard error.changedNothing else { throw .inline(error) }
            return error.description
        }
        try moveBreakpoint(to: inline.slack.address)
        return nil
    }

    private func moveBreakpoint(to address: GuestVirtualAddress) throws(DetourError) {
        try control { () throws(HypervisorError) in try debugRegisters.move(.entry, to: .execution(address)) }
        stopAddress = address
    }

    /// The registers that a thread has when it gets its own back: one that was stopped at the function stands where
    /// callers are stopped now.
    func ownRegisters(of holder: Holder) -> Registers {
        let isCaller = [entry, inline?.slack.address].contains { $0?.rawValue == holder.registers.rip }
        return isCaller ? holder.registers.standing(at: stopAddress) : holder.registers
    }

    /// Steps a caller that has executed the function's first instruction past all bytes that a jump is going to
    /// replace again: who is interrupted among them would come back into the middle of it.
    func stepPastPatch(_ vcpu: VCPU) throws(HypervisorError) {
        guard let plan = inline?.withdrawn else { return }
        let end = plan.patchAddress.rawValue &+ UInt64(plan.patch.count)
        for _ in 0..<plan.patch.count {
            let rip = try effects.machine.registers(of: vcpu).rip
            guard rip > entry.rawValue, rip < end else { return }
            try effects.step(vcpu)
        }
    }
}
