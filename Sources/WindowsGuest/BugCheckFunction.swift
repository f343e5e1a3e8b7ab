import GuestMemory

/// Where a crashing kernel comes by, and how that was found.
public struct BugCheckFunction: Hashable, Sendable {
    /// A way that leads to KeBugCheck2, which no kernel exports.
    public enum Way: String, Hashable, Sendable {
        /// KeBugCheckEx and KeBugCheck both call it with the bug check's code, and nothing else.
        case commonCallee = "common-callee"
        /// A byte pattern in the kernel's code.
        case pattern
    }

    public static let inner = "KeBugCheck2"
    static let outer = "KeBugCheckEx"
    static let plain = "KeBugCheck"

    /// `KeBugCheck2`; or `KeBugCheckEx`, which a crash that begins in the kernel itself need not come by.
    public var name: String
    public var address: GuestVirtualAddress
    /// The ways that lead to KeBugCheck2; empty where it is KeBugCheckEx.
    public var foundBy: [Way]
    /// Sentences for the user: why a way is missing.
    public var notes: [String]

    /// Finds the function to watch: KeBugCheck2 where nothing speaks against it, else KeBugCheckEx.
    /// - Parameter patterns: those that the user supplied; may be empty.
    /// - Throws: where the kernel exports no KeBugCheckEx either.
    public init(of kernel: WindowsKernel, patterns: [FunctionPatterns] = []) throws(DiscoveryError) {
        let exported = try kernel.export(Self.outer)
        var found: [(way: Way, address: GuestVirtualAddress)] = []
        var notes: [String] = []
        do throws(DiscoveryError) {
            found.append((.commonCallee, try Self.commonCallee(of: kernel, outer: exported)))
        } catch {
            notes.append("\(Self.inner) was not found by its callers: \(error)")
        }
        let search = PatternSearch(kernel: kernel, patterns: patterns)
        if search.hasPatterns(for: Self.inner) {
            do throws(DiscoveryError) {
                found.append((.pattern, try search.find(Self.inner).address))
            } catch {
                notes.append("\(Self.inner) was not found by pattern: \(error)")
                // Several places with its bytes are no answer, whatever else there is.
                if case .ambiguous = error { found = [] }
            }
        }
        if Set(found.map(\.address)).count > 1 {
            let error = DiscoveryError.disagreement(Self.inner, first: found[0].address, second: found[1].address)
            notes.append("\(error)")
            found = []
        }
        name = found.isEmpty ? Self.outer : Self.inner
        address = found.first?.address ?? exported
        foundBy = found.map(\.way)
        self.notes = notes
    }

    /// The one function that both exported ones pass the bug check's code on to.
    private static func commonCallee(
        of kernel: WindowsKernel, outer: GuestVirtualAddress
    ) throws(DiscoveryError) -> GuestVirtualAddress {
        let plain = try kernel.export(plain)
        let forwarded = ForwardedArgument(in: kernel, others: [outer, plain])
        let candidates = try forwarded.receivers(of: outer).intersection(try forwarded.receivers(of: plain))
            .filter { kernel.image.isExecutable($0) && !kernel.isExported($0) }
        guard let only = candidates.first else {
            throw .notFound("a function that \(Self.outer) and \(Self.plain) both call with the bug check's code")
        }
        guard candidates.count == 1 else { throw .ambiguous(inner, candidates: candidates.sorted()) }
        return only
    }
}
