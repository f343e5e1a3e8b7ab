import GuestMemory
import HypervisorInterface
import WindowsGuest

/// The bytes that a page (or a part of one) had, and how the page was mapped.
struct PageBaseline {
    /// Without Vigil's own patches.
    var bytes: [UInt8]
    /// The frame; nil where the page was in RAM without being mapped, so that it had no place of its own.
    var physical: GuestPhysicalAddress?
    /// Of a page that was not mapped: those that it may have when it is, besides execution.
    var rights: Translation.Rights
}

/// How a page differs from its baseline. Never empty where one is handed out.
struct PageDifference: Hashable {
    /// Changed bytes.
    struct Contents: Hashable {
        /// Of the first, from the page's start.
        var offset: Int
        var count: Int
        /// Of all that was found, by a hash that is keyed anew in each process of Vigil's.
        var hash: Int
    }

    var contents: Contents?
    /// The frame that the page is in now.
    var moved: GuestPhysicalAddress?
    var gained: Translation.Rights = []
    var lost: Translation.Rights = []

    var isEmpty: Bool { self == PageDifference() }
}

/// What one look at a page says.
enum PageLook: Equatable {
    /// The page is not in RAM, or cannot be read now: nothing is known.
    case absent
    case unchanged
    case different(PageDifference)
}

/// Reads pages of one address space and takes Vigil's own patches out of them.
struct PageReader {
    static let pageSize = 4096
    /// Looks at a difference that is another one each time, before the last is believed.
    static let attempts = 4

    let memory: KernelMemory
    let patches: [CodePatch.Place]
    /// Bytes that another protection answers for: they are never different.
    var excluded: [Range<UInt64>] = []
    /// Rights whose gain and loss matter. Others change without an attack.
    var gains: Translation.Rights = [.writable, .user, .executable]
    var losses: Translation.Rights = [.executable]

    init(_ memory: KernelMemory, patches: [CodePatch.Place]) {
        self.memory = memory
        self.patches = patches.filter { $0.original.count == $0.patch.count && !$0.patch.isEmpty }
    }

    /// The pages that bytes lie in.
    static func pages(of address: GuestVirtualAddress, count: Int) -> [GuestVirtualAddress] {
        guard count > 0 else { return [] }
        let inFirst = UInt64(address.rawValue & 0xfff)
        return stride(from: 0, to: inFirst + UInt64(count), by: 4096).map { address.page + $0 }
    }

    /// What a page holds now; nil where it cannot be read.
    /// - Throws: where RAM as a whole is out of reach.
    func baseline(of page: GuestVirtualAddress) throws(MemoryError) -> PageBaseline? {
        var last: PageBaseline?
        // Two readings that agree: the first may have caught a change half done.
        for _ in 0..<Self.attempts {
            guard let translation = try translation(of: page), let bytes = try contents(of: translation) else {
                return nil
            }
            let isMapped = translation.entry & 1 != 0
            let found = PageBaseline(
                bytes: bytes, physical: isMapped ? translation.physical : nil,
                rights: isMapped ? translation.rights : [])
            if let last, last.bytes == found.bytes, last.physical == found.physical { return found }
            last = found
        }
        return last
    }

    /// Compares a page with what it was, and looks again where it differs.
    /// - Parameter isPinned: its frame must be the same, too.
    func confirmedLook(
        at page: GuestVirtualAddress, _ baseline: PageBaseline, isPinned: Bool
    ) throws(MemoryError) -> PageLook {
        var last = try look(at: page, baseline, isPinned: isPinned)
        for _ in 1..<Self.attempts {
            guard case .different = last else { return last }
            let again = try look(at: page, baseline, isPinned: isPinned)
            if again == last { return again }
            last = again
        }
        return last
    }

    private func look(
        at page: GuestVirtualAddress, _ baseline: PageBaseline, isPinned: Bool
    ) throws(MemoryError) -> PageLook {
        guard let translation = try translation(of: page) else { return .absent }
        var difference = PageDifference()
        if translation.entry & 1 != 0 {
            difference.gained = translation.rights.subtracting(baseline.rights).intersection(gains)
            if let physical = baseline.physical {
                if isPinned, translation.physical != physical { difference.moved = translation.physical }
                difference.lost = baseline.rights.subtracting(translation.rights).intersection(losses)
            } else {
                difference.gained.remove(.executable)
            }
        }
        do throws(MemoryError) {
            let isEqual = try baseline.bytes.withUnsafeBufferPointer { (bytes) throws(MemoryError) in
                try memory.physical.holds(UnsafeRawBufferPointer(bytes), at: translation.physical)
            }
            if !isEqual, let found = try contents(of: translation) {
                difference.contents = compare(found, with: baseline.bytes, at: page)
            }
        } catch .notRAM {
            // The entry leads out of RAM: where to is all that can be said.
        }
        return difference.isEmpty ? .unchanged : .different(difference)
    }

    private func compare(
        _ found: [UInt8], with original: [UInt8], at page: GuestVirtualAddress
    ) -> PageDifference.Contents? {
        var first: Int?
        var count = 0
        var hasher = Hasher()
        for offset in original.indices where offset < found.count && found[offset] != original[offset] {
            let address = page.rawValue &+ UInt64(offset)
            if excluded.contains(where: { $0.contains(address) }) { continue }
            first = first ?? offset
            count += 1
            hasher.combine(offset)
            hasher.combine(found[offset])
        }
        return first.map { .init(offset: $0, count: count, hash: hasher.finalize()) }
    }

    /// Where a page is now; nil where it is nowhere that can be read.
    private func translation(of page: GuestVirtualAddress) throws(MemoryError) -> Translation? {
        do throws(MemoryError) {
            return try memory.translate(page)
        } catch .unreachable(let address, let errno) {
            throw .unreachable(address, errno: errno)
        } catch {
            return nil
        }
    }

    /// The page's bytes without Vigil's patches; nil where the entry leads out of RAM.
    private func contents(of translation: Translation) throws(MemoryError) -> [UInt8]? {
        try bytes(at: translation.physical, count: Self.pageSize)
    }

    /// RAM's bytes without Vigil's patches; nil where there is no RAM.
    private func bytes(at physical: GuestPhysicalAddress, count: Int) throws(MemoryError) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: count)
        do throws(MemoryError) {
            try bytes.withUnsafeMutableBufferPointer { (buffer) throws(MemoryError) in
                try memory.physical.read(at: physical, into: UnsafeMutableRawBufferPointer(buffer))
            }
        } catch .unreachable(let address, let errno) {
            throw .unreachable(address, errno: errno)
        } catch {
            return nil
        }
        for patch in patches { patch.undo(in: &bytes, at: physical) }
        return bytes
    }

    /// The bytes of a range that need not be whole pages, as they are now, without Vigil's patches; nil where one of
    /// its pages cannot be read.
    func bytes(at address: GuestVirtualAddress, count: Int) throws(MemoryError) -> [UInt8]? {
        var result: [UInt8] = []
        result.reserveCapacity(count)
        while result.count < count {
            let next = address + UInt64(result.count)
            let inPage = Int(next.rawValue & 0xfff)
            guard let translation = try translation(of: next),
                let part = try bytes(
                    at: translation.physical, count: min(Self.pageSize - inPage, count - result.count))
            else { return nil }
            result += part
        }
        return result
    }

    /// The same, read until two readings in a row agree.
    func stableBytes(at address: GuestVirtualAddress, count: Int) throws(MemoryError) -> [UInt8]? {
        var last = try bytes(at: address, count: count)
        for _ in 1..<Self.attempts {
            let again = try bytes(at: address, count: count)
            if again == last { return again }
            last = again
        }
        return last
    }
}

extension CodePatch.Place {
    /// Puts the original back where `bytes`, which lie at `start`, hold this patch.
    func undo(in bytes: inout [UInt8], at start: GuestPhysicalAddress) {
        let from = max(physical.rawValue, start.rawValue)
        let to = min(physical.rawValue &+ UInt64(patch.count), start.rawValue &+ UInt64(bytes.count))
        guard from < to else { return }
        let here = Int(from - start.rawValue)..<Int(to - start.rawValue)
        let there = Int(from - physical.rawValue)..<Int(to - physical.rawValue)
        guard bytes[here].elementsEqual(patch[there]) else { return }
        bytes.replaceSubrange(here, with: original[there])
    }
}
