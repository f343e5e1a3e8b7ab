import GuestMemory

/// A page that is compared, and what has been said of it.
struct WatchedPage {
    let address: GuestVirtualAddress
    /// The page's frame must stay the same.
    let isPinned: Bool
    /// Taken when the page is first in RAM.
    var baseline: PageBaseline?
    /// The difference that was last reported, and is still there as far as is known.
    var reported = PageDifference()

    init(_ address: GuestVirtualAddress, isPinned: Bool) {
        self.address = address
        self.isPinned = isPinned
    }

    /// Looks at the page; what is new about it is returned, and not again while it stays as it is.
    /// - Parameter owner: whose page it is, for people: "ntoskrnl.exe's .text".
    mutating func check(
        _ reader: PageReader, _ kind: ProtectionKind, owner: @autoclosure () -> String
    ) throws(MemoryError) -> [Violation] {
        guard let baseline else {
            self.baseline = try reader.baseline(of: address)
            return []
        }
        switch try reader.confirmedLook(at: address, baseline, isPinned: isPinned) {
        case .absent: return []
        case .unchanged:
            completeBaseline(from: reader)
            reported = PageDifference()
            return []
        case .different(let difference):
            defer { reported = difference }
            return violations(difference, kind, owner: owner())
        }
    }

    /// A page that was known only while it was not mapped gets its frame and rights when it is.
    private mutating func completeBaseline(from reader: PageReader) {
        guard let known = baseline, known.physical == nil, let translation = try? reader.memory.translate(address),
            translation.entry & 1 != 0
        else { return }
        baseline = PageBaseline(
            bytes: known.bytes, physical: translation.physical, rights: translation.rights)
    }

    private func violations(_ difference: PageDifference, _ kind: ProtectionKind, owner: String) -> [Violation] {
        var found: [Violation] = []
        func add(_ what: String, at offset: Int = 0) {
            found.append(Violation(protection: kind, what: what, address: address + UInt64(offset)))
        }
        if let contents = difference.contents, contents != reported.contents {
            add("\(countOfBytes(contents.count)) of \(owner) changed", at: contents.offset)
        }
        if let moved = difference.moved, moved != reported.moved {
            let from = baseline?.physical.map { " from \($0)" } ?? ""
            add("a page of \(owner) is mapped elsewhere: moved\(from) to \(moved)")
        }
        let gained = difference.gained.subtracting(reported.gained)
        if gained.contains(.writable) { add("a page of \(owner) became writable") }
        if gained.contains(.user) { add("a page of \(owner) became accessible to user mode") }
        if gained.contains(.executable) { add("a page of \(owner) became executable") }
        if difference.lost.subtracting(reported.lost).contains(.executable) {
            add("a page of \(owner) is no longer executable")
        }
        return found
    }
}

/// A number of bytes, for people.
func countOfBytes(_ count: Int) -> String { count == 1 ? "1 byte" : "\(count) bytes" }
