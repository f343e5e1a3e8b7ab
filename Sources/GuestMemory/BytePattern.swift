#if canImport(Glibc)
    import Glibc
#else
    import Musl
#endif

/// A sequence of bytes, some of which may be anything, to be searched for.
public struct BytePattern: Hashable, Sendable {
    /// The element that any byte matches.
    public static let wildcard: UInt16 = 0x100

    /// Why elements make no pattern.
    public enum Invalid: Error, Hashable, Sendable, CustomStringConvertible {
        case empty
        case onlyWildcards
        case tooLong(Int)
        case element(UInt16, index: Int)

        public var description: String {
            switch self {
            case .empty: "a pattern without bytes matches everything"
            case .onlyWildcards: "a pattern of wildcards alone matches everything"
            case .tooLong(let count):
                "a pattern of \(count) bytes, where at most \(BytePattern.maximumCount) are allowed"
            case .element(let value, let index):
                "element \(index) of a pattern is \(value), neither a byte nor the wildcard 256"
            }
        }
    }

    /// Far more than a pattern that tells a function needs.
    public static let maximumCount = 4096

    public let elements: [UInt16]
    /// The first element that is no wildcard.
    let anchor: Int

    /// - Parameter elements: bytes, and 0x100 for a byte that may be anything.
    public init(_ elements: [UInt16]) throws(Invalid) {
        guard !elements.isEmpty else { throw .empty }
        guard elements.count <= Self.maximumCount else { throw .tooLong(elements.count) }
        if let index = elements.firstIndex(where: { $0 > Self.wildcard }) {
            throw .element(elements[index], index: index)
        }
        guard let anchor = elements.firstIndex(where: { $0 != Self.wildcard }) else { throw .onlyWildcards }
        self.elements = elements
        self.anchor = anchor
    }

    public var count: Int { elements.count }

    /// Whether the pattern lies at `offset` of `bytes`.
    public func matches(_ bytes: UnsafeRawBufferPointer, at offset: Int) -> Bool {
        guard offset >= 0, offset <= bytes.count, elements.count <= bytes.count - offset else { return false }
        for (index, element) in elements.enumerated() where element != Self.wildcard {
            if UInt16(bytes[offset + index]) != element { return false }
        }
        return true
    }

    /// The offsets of all matches, the last possible one included, overlapping ones too.
    /// - Parameter limit: the search ends after this many matches.
    public func matches(in bytes: UnsafeRawBufferPointer, limit: Int = 64) -> [Int] {
        var found: [Int] = []
        guard let base = bytes.baseAddress, bytes.count >= elements.count else { return found }
        let last = bytes.count - elements.count
        let first = Int32(elements[anchor])
        var offset = 0
        while offset <= last, found.count < limit {
            guard let hit = memchr(base + offset + anchor, first, last - offset + 1) else { break }
            offset = UnsafeRawPointer(hit) - base - anchor
            if matches(bytes, at: offset) { found.append(offset) }
            offset += 1
        }
        return found
    }

    /// The offsets of all matches in `bytes` that touch none of its gaps.
    public func matches(in bytes: PartialBytes, limit: Int = 64) -> [Int] {
        bytes.bytes.withUnsafeBytes { matches(in: $0, limit: limit) }
            .filter { bytes.gap(at: $0, count: count) == nil }
    }
}
