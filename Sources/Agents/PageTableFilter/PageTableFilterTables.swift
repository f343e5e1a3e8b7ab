import GuestMemory
import X86

/// Bytes to be written into the agent's memory.
public struct PageTableFilterWrite: Hashable, Sendable {
    /// From the agent's start.
    public var offset: Int
    public var bytes: [UInt8]

    public init(offset: Int, bytes: [UInt8]) {
        self.offset = offset
        self.bytes = bytes
    }
}

/// The instructions that the filter performs, in the form that it looks them up in.
public struct PageTableWriterTable: Sendable {
    private static let none: UInt8 = 0xff

    private let layout: PageTableFilterLayout
    private var keys: [Int: UInt64] = [:]

    /// An empty table, as the agent has it at its start.
    public init(_ layout: PageTableFilterLayout) { self.layout = layout }

    public var count: Int { keys.count }

    /// Adds an instruction. All writes must have been made, in their order, before the instruction is patched.
    /// - Returns: the writes; none for an instruction that is there.
    /// - Throws: `full`.
    public mutating func insert(_ writer: PageTableWriter) throws(PageTableFilterError) -> [PageTableFilterWrite] {
        let key = writer.end.rawValue
        let first = layout.writers.firstSlot(of: key)
        for number in first..<first + layout.probes {
            let slot = layout.writers.slot(number)
            if keys[slot] == key { return [] }
            guard keys[slot] == nil else { continue }
            keys[slot] = key
            // The key comes last: without it the rest is not looked at.
            return [
                PageTableFilterWrite(offset: slot + 8, bytes: Self.encode(writer)),
                PageTableFilterWrite(offset: slot, bytes: key.littleEndianBytes),
            ]
        }
        throw .full("instructions")
    }

    /// FILTER_WRITER from its ninth byte on.
    private static func encode(_ writer: PageTableWriter) -> [UInt8] {
        let source: UInt8
        let immediate: Int32
        switch writer.source {
        case .register(let number): (source, immediate) = (number, 0)
        case .immediate(let value): (source, immediate) = (none, value)
        }
        let shift = UInt8(writer.scale.trailingZeroBitCount)
        return [writer.kind.rawValue, writer.base ?? none, writer.index ?? none, source, shift, 0, 0, 0]
            + writer.displacement.littleEndianBytes + immediate.littleEndianBytes
    }
}

/// The entries whose changes are reported, in the form that the filter looks them up in.
///
/// It may change while the filter runs: an address is written last when it is added, and first when it is removed.
public struct PageTableWatchTable: Sendable {
    private static let free: UInt64 = 0
    private static let removed: UInt64 = 1
    private static let immediate: UInt32 = 1

    private let layout: PageTableFilterLayout
    /// By the slot's offset; free slots are left out.
    private var keys: [Int: UInt64] = [:]

    /// An empty table, as the agent has it at its start.
    public init(_ layout: PageTableFilterLayout) { self.layout = layout }

    /// How many addresses are watched.
    public var count: Int { keys.values.count { $0 != Self.removed } }

    /// Adds an entry at one of its linear addresses; if it is there, changes its number and mark.
    /// - Parameters:
    ///   - address: 8-byte aligned. An entry that the kernel writes by several is added with each.
    ///   - index: the caller's number for it, which its reports have.
    ///   - isImmediate: a change goes by the report point.
    /// - Returns: the writes, to be made in their order.
    /// - Throws: `full`; `malformed` for an address that cannot be an entry's.
    public mutating func insert(
        _ address: GuestVirtualAddress, index: UInt32, isImmediate: Bool
    ) throws(PageTableFilterError) -> [PageTableFilterWrite] {
        let key = address.rawValue
        guard key & 7 == 0, key != Self.free else { throw .malformed("\(address) is no entry's address") }
        guard let slot = slot(of: key) ?? vacancy(for: key) else { throw .full("watched entries") }
        let isNew = keys[slot] != key
        keys[slot] = key
        let rest = index.littleEndianBytes + (isImmediate ? Self.immediate : 0).littleEndianBytes
        return [PageTableFilterWrite(offset: slot + 8, bytes: rest)]
            + (isNew ? [PageTableFilterWrite(offset: slot, bytes: key.littleEndianBytes)] : [])
    }

    /// Removes an address.
    /// - Returns: the write; none for an address that is not there.
    public mutating func remove(_ address: GuestVirtualAddress) -> [PageTableFilterWrite] {
        guard let slot = slot(of: address.rawValue), address.rawValue != Self.removed else { return [] }
        // Others may have passed by this slot on the way to theirs.
        keys[slot] = Self.removed
        return [PageTableFilterWrite(offset: slot, bytes: Self.removed.littleEndianBytes)]
    }

    private func slots(for key: UInt64) -> some Sequence<Int> {
        let first = layout.watches.firstSlot(of: key)
        return (first..<first + layout.probes).lazy.map { layout.watches.slot($0) }
    }

    private func slot(of key: UInt64) -> Int? { slots(for: key).first { keys[$0] == key } }

    private func vacancy(for key: UInt64) -> Int? {
        slots(for: key).first { keys[$0] == nil || keys[$0] == Self.removed }
    }
}
