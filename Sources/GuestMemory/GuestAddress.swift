/// An address in the guest's physical address space.
///
/// Physical, virtual and host addresses are different types so that they never mix.
/// Arithmetic wraps: a guest value must never trap the host.
public struct GuestPhysicalAddress: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var rawValue: UInt64

    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    @inlinable public static func + (a: Self, offset: UInt64) -> Self { Self(a.rawValue &+ offset) }
    @inlinable public static func - (a: Self, offset: UInt64) -> Self { Self(a.rawValue &- offset) }

    /// The address's page number times the page size (4 KiB).
    @inlinable public var page: Self { Self(rawValue & ~0xfff) }

    public var description: String { "phys 0x" + String(rawValue, radix: 16) }
}

/// A linear address of the guest, meaningful only in one of its address spaces.
public struct GuestVirtualAddress: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var rawValue: UInt64

    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    @inlinable public static func + (a: Self, offset: UInt64) -> Self { Self(a.rawValue &+ offset) }
    @inlinable public static func - (a: Self, offset: UInt64) -> Self { Self(a.rawValue &- offset) }

    /// The distance from `other` to this address in bytes, modulo 2^64.
    @inlinable public func distance(from other: Self) -> UInt64 { rawValue &- other.rawValue }

    /// The first address of the 4 KiB page this address lies in.
    @inlinable public var page: Self { Self(rawValue & ~0xfff) }

    public var description: String { "0x" + String(rawValue, radix: 16) }
}
