import GuestMemory
import HypervisorInterface
import WindowsGuest

/// The protections of one guest's kernel.
///
/// All of them look from outside: nothing here stops or changes the guest, which may run meanwhile. A difference is
/// looked at twice before it is one, so that a legitimate change in progress is none. What is protected is what was
/// there when it was armed; see `Documentation/protections.md` for what that cannot see.
public final class ProtectionSet {
    private let machine: any VirtualMachine
    private let kernel: WindowsKernel
    private let offsets: KernelOffsets
    private let ownPatches: () -> [CodePatch.Place]

    private var kernelCode: KernelCode?
    private var interruptTables: InterruptTables?
    private var serviceTables: ServiceTables?
    private var userCode: UserCode?
    /// The kind that the next slice begins with.
    private var turn = 0
    /// Found before something threw: told by the next call.
    private var untold: [Violation] = []
    /// Checks stand still for a power transition.
    public private(set) var isSuspended = false

    /// - Parameter ownPatches: asked at each check for all bytes that Vigil has in the guest at that time: where they
    ///   are found, the original is taken for them. Where one patch lies on top of another, the upper one comes first.
    ///   Only all of a patch within a page is Vigil's: with one byte of it different, all of that part counts as found.
    ///   A patch that has not as many bytes as its original is ignored.
    public init(
        _ machine: any VirtualMachine, kernel: WindowsKernel, offsets: KernelOffsets,
        ownPatches: @escaping () -> [CodePatch.Place] = { [] }
    ) {
        self.machine = machine
        self.kernel = kernel
        self.offsets = offsets
        self.ownPatches = ownPatches
    }

    /// What has a baseline, suspended or not.
    public var armed: Set<ProtectionKind> {
        var kinds: Set<ProtectionKind> = []
        if kernelCode != nil { kinds.insert(.kernelCode) }
        if interruptTables != nil { kinds.insert(.interruptTables) }
        if serviceTables != nil { kinds.insert(.serviceTables) }
        if userCode != nil { kinds.insert(.userCode) }
        return kinds
    }

    /// Takes what is in the guest now for the original, for those kinds that are not armed yet.
    /// - Parameter processes: names of images, such as `lsass.exe`, whose processes `userCode` protects, besides those
    ///   that it protects already. Upper and lower case are the same. They need not run yet.
    /// - Throws: `suspended`; `noProcess`; what the kernel or the machine does not give. Kinds before the one that
    ///   failed, in the order of `ProtectionKind`, are armed.
    public func arm(_ kinds: Set<ProtectionKind>, processes: [String] = []) throws(ProtectionError) {
        guard !isSuspended else { throw .suspended }
        if kinds.contains(.userCode), processes.isEmpty, userCode == nil { throw .noProcess }
        let patches = ownPatches()
        if kinds.contains(.kernelCode), kernelCode == nil {
            do throws(MemoryError) {
                kernelCode = try KernelCode(kernel, patches: patches)
            } catch {
                throw .memory(error)
            }
        }
        if kinds.contains(.interruptTables), interruptTables == nil {
            interruptTables = try InterruptTables(kernel, machine, patches: patches)
        }
        if kinds.contains(.serviceTables), serviceTables == nil {
            serviceTables = try ServiceTables(kernel, patches: patches)
        }
        if kinds.contains(.userCode) {
            let protection = userCode ?? UserCode(kernel, offsets)
            try protection.add(processes, patches: patches)
            userCode = protection
        }
    }

    /// Forgets the baselines of these kinds.
    public func disarm(_ kinds: Set<ProtectionKind>) {
        if kinds.contains(.kernelCode) { kernelCode = nil }
        if kinds.contains(.interruptTables) { interruptTables = nil }
        if kinds.contains(.serviceTables) { serviceTables = nil }
        if kinds.contains(.userCode) { userCode = nil }
        untold.removeAll { kinds.contains($0.protection) }
    }

    /// Checks stop, for as long as a power transition takes. Baselines stay.
    public func suspend() { isSuspended = true }

    /// Checks go on, against the baselines from before: what was changed meanwhile is a violation.
    /// - Returns: what a whole check finds.
    /// - Throws: as `check`. Checks go on in that case, too.
    public func resume() throws(ProtectionError) -> [Violation] {
        isSuspended = false
        return try check()
    }

    /// Compares what is armed with what it was. While suspended, nothing is compared.
    ///
    /// Each difference is reported once, and again when it becomes another one; one that has gone is reported anew
    /// when it comes back.
    /// - Parameter budget: about how many bytes of the guest are read; the next call goes on where this one ended.
    ///   nil for one whole round.
    /// - Throws: where the machine or its memory cannot be reached, or the processes cannot be listed. What was found
    ///   until then is returned by the next call, which looks no further.
    public func check(budget: Int? = nil) throws(ProtectionError) -> [Violation] {
        guard !isSuspended else { return [] }
        guard untold.isEmpty else { return takeFound() }
        let patches = ownPatches()
        let reader = kernelReader(patches)
        var left = budget ?? .max
        if budget == nil { startOver() }
        // One kind after the other, each at most once.
        for _ in ProtectionKind.allCases where left > 0 {
            guard try check(ProtectionKind.allCases[turn], reader, patches, budget: &left) else { break }
            turn = (turn + 1) % ProtectionKind.allCases.count
        }
        return takeFound()
    }

    /// Compares one page, of whose translation something was heard, as far as it is part of what is armed.
    /// - Parameter page: any address in it.
    /// - Throws: where memory cannot be reached.
    public func check(page: GuestVirtualAddress) throws(ProtectionError) -> [Violation] {
        guard !isSuspended else { return [] }
        let reader = kernelReader(ownPatches())
        do throws(MemoryError) {
            try kernelCode?.check(page: page, reader, into: &untold)
            try serviceTables?.check(page: page, reader, withCode: kernelCode == nil, into: &untold)
        } catch {
            throw .memory(error)
        }
        if let interruptTables, interruptTables.addresses.contains(page.page) {
            var budget = Int.max
            try interruptTables.check(machine, reader, budget: &budget, into: &untold)
        }
        return takeFound()
    }

    /// The kernel's pages whose translation matters to what is armed, in order, each once.
    public var watchedPages: [GuestVirtualAddress] {
        var pages = Set(kernelCode?.addresses ?? [])
        pages.formUnion(interruptTables?.addresses ?? [])
        pages.formUnion(serviceTables?.addresses ?? [])
        return pages.sorted()
    }

    private func takeFound() -> [Violation] {
        defer { untold = [] }
        return untold
    }

    private func startOver() {
        turn = 0
        kernelCode?.startOver()
        serviceTables?.startOver()
        userCode?.startOver()
    }

    /// Two protections cover the service tables, and the code that reads them. One change is one violation.
    private func kernelReader(_ patches: [CodePatch.Place]) -> PageReader {
        var reader = PageReader(kernel.memory, patches: patches)
        reader.excluded = serviceTables?.ranges ?? []
        return reader
    }

    /// - Returns: whether the kind's round is complete.
    private func check(
        _ kind: ProtectionKind, _ reader: PageReader, _ patches: [CodePatch.Place], budget: inout Int
    ) throws(ProtectionError) -> Bool {
        switch kind {
        case .interruptTables:
            try interruptTables?.check(machine, reader, budget: &budget, into: &untold)
            return true
        case .userCode:
            return try userCode?.check(patches: patches, budget: &budget, into: &untold) ?? true
        case .kernelCode, .serviceTables:
            do throws(MemoryError) {
                if kind == .kernelCode {
                    return try kernelCode?.check(reader, budget: &budget, into: &untold) ?? true
                }
                return try serviceTables?.check(
                    reader, withCode: kernelCode == nil, budget: &budget, into: &untold) ?? true
            } catch {
                throw .memory(error)
            }
        }
    }
}
