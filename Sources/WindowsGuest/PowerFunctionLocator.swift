import GuestMemory

/// NtSetSystemPowerState, and what is known of how it was found.
public struct PowerFunction: Hashable, Sendable {
    /// A way that leads to the function on its own.
    public enum Way: String, Hashable, Sendable {
        /// The number that the guest's ntdll gives it, looked up in the kernel's service table.
        case serviceTable = "service-table"
        /// A byte pattern in the kernel's code.
        case pattern
    }

    public var address: GuestVirtualAddress
    /// One way, or two that agree.
    public var foundBy: [Way]
    /// Its system-call number, where the service table was the way.
    public var number: UInt32?
    /// The kernel's own Zw stub with that number. It confirms the number and is no second way.
    public var stub: GuestVirtualAddress?
    /// Sentences for the user: what confirms the answer, and why a way is missing.
    public var notes: [String]

    /// Two ways agree.
    public var isConfirmed: Bool { foundBy.count > 1 }
}

/// Finds NtSetSystemPowerState, which no kernel exports.
public struct PowerFunctionLocator {
    public static let functionName = "NtSetSystemPowerState"

    let kernel: WindowsKernel
    let processes: [GuestProcess]
    let patterns: [FunctionPatterns]

    /// - Parameters:
    ///   - processes: where ntdll is looked for.
    ///   - patterns: those that the user supplied; may be empty.
    public init(of kernel: WindowsKernel, processes: [GuestProcess], patterns: [FunctionPatterns] = []) {
        self.kernel = kernel
        self.processes = processes
        self.patterns = patterns
    }

    /// Tries both ways. Where they lead to different functions the pattern counts, which somebody has chosen for this
    /// very build, and a note names both.
    /// - Throws: `ambiguous` where a pattern matches more than once; where both fail, the more hopeful reason.
    public func locate() throws(DiscoveryError) -> PowerFunction {
        var notes: [String] = []
        var result: PowerFunction?
        var failures: [DiscoveryError] = []
        do throws(DiscoveryError) {
            result = try byServiceTable(&notes)
        } catch {
            notes.append("not found by the service table: \(error)")
            failures.append(error)
        }
        let search = PatternSearch(kernel: kernel, patterns: patterns)
        if search.hasPatterns(for: Self.functionName) {
            var match: PatternSearch.Match?
            do throws(DiscoveryError) {
                match = try search.find(Self.functionName)
            } catch {
                if case .ambiguous = error { throw error }
                notes.append("not found by pattern: \(error)")
                failures.append(error)
            }
            if let match { result = try Self.combine(match, result, &notes) }
        } else {
            notes.append("no pattern for build \(kernel.build) was supplied: there is no second way")
        }
        guard var result else {
            throw failures.first(where: \.canBeRetried) ?? failures.first ?? .notFound(Self.functionName)
        }
        result.notes = notes
        return result
    }

    /// What a pattern's match makes of what the service table says.
    /// - Throws: `notYet` where they differ, and the match may not be the only one.
    private static func combine(
        _ match: PatternSearch.Match, _ derived: PowerFunction?, _ notes: inout [String]
    ) throws(DiscoveryError) -> PowerFunction {
        if var derived, derived.address == match.address {
            derived.foundBy.append(.pattern)
            return derived
        }
        if let gap = match.gap {
            // Against the service table a match counts that is known to be the only one.
            if derived != nil { throw DiscoveryError(gap, reading: "whether the pattern matches once") }
            notes.append("the pattern may match again in code that is not resident now (\(gap))")
        }
        if let derived {
            notes.append(
                "WARNING: the pattern leads to \(match.address), the service table to \(derived.address): the pattern, "
                    + "which was supplied, counts")
        }
        return PowerFunction(address: match.address, foundBy: [.pattern], number: nil, stub: nil, notes: [])
    }

    private func byServiceTable(_ notes: inout [String]) throws(DiscoveryError) -> PowerFunction {
        let calls = SystemCalls(of: kernel, processes: processes)
        let call = try calls.number(of: Self.functionName)
        let table = try ServiceTable(of: kernel)
        let address = try table.function(call.number, in: kernel)
        let witnesses = call.confirmedBy.map { "\($0.imageName) (\($0.id))" }
        notes.append(
            "system call \(call.number), by ntdll in \(call.process.imageName) (\(call.process.id))"
                + (witnesses.isEmpty ? "" : ", confirmed in " + witnesses.joined(separator: " and ")))
        notes.append(
            "the service table, found by \(table.source.words), agrees with \(table.confirmations.count) exported "
                + "services")
        if !table.contradictions.isEmpty {
            notes.append("the service table contradicts the exports of " + table.contradictions.joined(separator: ", "))
        }
        // Exported services are listed under their own name: this one must not be among them.
        if let name = exportedName(of: address) {
            throw .malformed("service \(call.number) is the exported \(name)", at: address)
        }
        let stubs = (try? table.kernelStubs(number: call.number, in: kernel)) ?? []
        if let stub = stubs.first, stubs.count == 1 {
            notes.append("the kernel's own stub at \(stub) carries the same number")
        }
        return PowerFunction(
            address: address, foundBy: [.serviceTable], number: call.number,
            stub: stubs.count == 1 ? stubs.first : nil, notes: [])
    }

    private func exportedName(of address: GuestVirtualAddress) -> String? {
        kernel.exports.exports.first { kernel.base + UInt64($0.value.rva) == address && $0.key != Self.functionName }?
            .key
    }
}
