import X86

/// Where a linear address lies in physical memory, and what may be done with its page.
public struct Translation: Hashable, Sendable {
    /// What the paging structures allow, all levels taken together. Intel SDM volume 3, 4.6.
    public struct Rights: OptionSet, Hashable, Sendable {
        public let rawValue: UInt8
        @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }

        public static let writable = Rights(rawValue: 1)
        /// User-mode code may access the page.
        public static let user = Rights(rawValue: 2)
        /// No level forbids execution.
        public static let executable = Rights(rawValue: 4)
        /// The translation outlives a change of CR3 in the TLB.
        public static let global = Rights(rawValue: 8)

        /// From the bits that all entries of a walk have in common, those that any has, and the last entry.
        @inlinable init(common: UInt64, any: UInt64, last: PageTableEntry) {
            // R/W and U/S are bits 1 and 2, G is bit 8, XD is bit 63.
            let granted = (common >> 1) & 3 | (last.rawValue >> 5) & 8 | (~any >> 61) & 4
            self.init(rawValue: UInt8(truncatingIfNeeded: granted))
        }
    }

    public var physical: GuestPhysicalAddress
    /// 4 KiB, 2 MiB, 4 MiB or 1 GiB; 4 KiB also where paging is off.
    public var pageSize: UInt64
    public var rights: Rights
    /// The entry that maps the page; 0 where paging is off.
    public var entry: UInt64

    @inlinable public init(physical: GuestPhysicalAddress, pageSize: UInt64, rights: Rights, entry: UInt64) {
        self.physical = physical
        self.pageSize = pageSize
        self.rights = rights
        self.entry = entry
    }

    @inlinable public var isWritable: Bool { rights.contains(.writable) }
    @inlinable public var isUser: Bool { rights.contains(.user) }
    @inlinable public var isExecutable: Bool { rights.contains(.executable) }
    @inlinable public var isGlobal: Bool { rights.contains(.global) }

    /// The bytes from the translated address to the end of its page.
    @inlinable public var bytesToPageEnd: UInt64 {
        pageSize &- (physical.rawValue & (pageSize &- 1))
    }
}
