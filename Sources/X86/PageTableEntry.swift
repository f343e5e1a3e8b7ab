/// One entry of a paging structure, of any level and mode. Intel SDM volume 3, chapter 4.
public struct PageTableEntry: Hashable, Sendable {
    public var rawValue: UInt64

    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    /// Bit 0, P.
    @inlinable public var isPresent: Bool { rawValue & 1 != 0 }
    /// Bit 1, R/W.
    @inlinable public var isWritable: Bool { rawValue & (1 << 1) != 0 }
    /// Bit 2, U/S.
    @inlinable public var isUser: Bool { rawValue & (1 << 2) != 0 }
    /// Bit 5, A.
    @inlinable public var isAccessed: Bool { rawValue & (1 << 5) != 0 }
    /// Bit 6, D; meaningful in an entry that maps a page.
    @inlinable public var isDirty: Bool { rawValue & (1 << 6) != 0 }
    /// Bit 7, PS; meaningful above the last level.
    @inlinable public var isLargePage: Bool { rawValue & (1 << 7) != 0 }
    /// Bit 8, G; meaningful in an entry that maps a page.
    @inlinable public var isGlobal: Bool { rawValue & (1 << 8) != 0 }
    /// Bit 63, XD: no instruction fetches, where EFER.NXE is set.
    @inlinable public var isExecuteDisabled: Bool { rawValue & (1 << 63) != 0 }

    /// Bits 51 to 12: the physical address of a table or a 4 KiB page, for the largest MAXPHYADDR there is
    /// (52, SDM volume 3, 4.1.4). Addresses beyond the guest's RAM are found out when they are read.
    public static let addressMask: UInt64 = 0x000f_ffff_ffff_f000

    @inlinable public var address: UInt64 { rawValue & Self.addressMask }
}
