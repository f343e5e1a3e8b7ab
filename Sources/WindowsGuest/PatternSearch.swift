import GuestMemory

/// Finds a function of the kernel by byte patterns.
struct PatternSearch {
    let kernel: WindowsKernel
    let patterns: [FunctionPatterns]

    /// Whether there is any pattern for this function in this build.
    func hasPatterns(for name: String) -> Bool { !usable(name).isEmpty }

    private func usable(_ name: String) -> [FunctionPatterns.Pattern] {
        patterns.filter { $0.name == name && $0.is64Bit == (kernel.architecture == .x64) }
            .flatMap { $0.patterns(forBuild: kernel.build) }
    }

    /// Where a pattern matches, and whether that is all.
    struct Match {
        var address: GuestVirtualAddress
        /// Why a part of the code that was searched could not be: it may match there, too.
        var gap: MemoryError?
    }

    /// The function's address: first in the sections that the patterns hint at, then in all code.
    /// - Throws: `ambiguous` for several matches; `notYet` where there is none, but code is not resident;
    ///   `notFound`.
    func find(_ name: String) throws(DiscoveryError) -> Match {
        let usable = usable(name)
        guard !usable.isEmpty else {
            throw .notFound("a pattern of \(name) for build \(kernel.build)")
        }
        let code = kernel.image.sections.filter { $0.isExecutable }
        var gap: MemoryError?
        let hinted = try matches(of: usable, in: code, gap: &gap) { pattern, section in
            section.name == pattern.sectionHint
        }
        if let match = try only(hinted, name) { return Match(address: match, gap: gap) }
        // Where a part of the hinted section is missing, a match elsewhere would be no answer.
        if let gap { throw DiscoveryError(gap, reading: "the section where \(name) is expected") }
        let others = try matches(of: usable, in: code, gap: &gap) { pattern, section in
            section.name != pattern.sectionHint && !section.isDiscardable
        }
        if let match = try only(others, name) { return Match(address: match, gap: gap) }
        if let gap { throw DiscoveryError(gap, reading: "a part of the code where \(name) may be") }
        throw .notFound("\(name), by \(usable.count) pattern(s) for build \(kernel.build),")
    }

    private func only(
        _ matches: Set<GuestVirtualAddress>, _ name: String
    ) throws(DiscoveryError) -> GuestVirtualAddress? {
        guard matches.count <= 1 else { throw .ambiguous("the pattern of \(name)", candidates: matches.sorted()) }
        return matches.first
    }

    private func matches(
        of patterns: [FunctionPatterns.Pattern], in sections: [PEImage.Section], gap: inout MemoryError?,
        where isWanted: (FunctionPatterns.Pattern, PEImage.Section) -> Bool
    ) throws(DiscoveryError) -> Set<GuestVirtualAddress> {
        var found: Set<GuestVirtualAddress> = []
        for section in sections {
            let wanted = patterns.filter { isWanted($0, section) }
            guard !wanted.isEmpty else { continue }
            let code = try kernel.code(of: section)
            gap = gap ?? code.gaps.first?.error
            for pattern in wanted {
                for offset in pattern.bytes.matches(in: code) { found.insert(code.address + UInt64(offset)) }
            }
        }
        return found
    }
}
