import X86

/// One address space of the guest, read by walking its page tables at each access.
///
/// While the guest runs no event tells of a changed entry, so nothing is kept from one read to the next.
/// Tables are guest memory like any other: whatever they hold, a walk reads at most one entry for each
/// level and ends in a translation or an error. A table that refers to itself is only a table.
public struct VirtualMemory: TranslatedMemory {
    public let physical: PhysicalMemory
    public let space: AddressSpace

    /// What `loadDirectly` needs, worked out once: where the largest mapped region begins, here and in the guest,
    /// and the last place in it for an entry (0 where it cannot be used); the bits that no entry may have; the root.
    @usableFromInline let start: UnsafeRawPointer
    @usableFromInline let base: UInt64
    @usableFromInline let last: UInt64
    @usableFromInline let forbidden: UInt64
    @usableFromInline let root: UInt64

    @inlinable public init(physical: PhysicalMemory, space: AddressSpace) {
        self.physical = physical
        self.space = space
        start = physical.mainStart
        base = physical.mainBase
        let isUsual = if case .fourLevel = space.mode { physical.mainLength >= 4096 } else { false }
        last = isUsual ? physical.mainLength &- 8 : 0
        forbidden = space.executeDisableEnabled ? 0 : 1 << 63
        // Out of the region, where it cannot be used.
        root = isUsual ? (space.root & PageTableEntry.addressMask) &- physical.mainBase : 1 << 63
    }

    @inlinable public var pagingMode: PagingMode { space.mode }

    /// Loads an integer at `address`, also across a page boundary; one within a page is read in one piece.
    @inline(__always) @inlinable public func load<Value: FixedWidthInteger & BitwiseCopyable>(
        _ type: Value.Type, at address: GuestVirtualAddress
    ) throws(MemoryError) -> Value {
        if let value = loadDirectly(type, at: address) { return value }
        return try loadByTranslation(type, at: address)
    }

    @inline(never) @inlinable func loadByTranslation<Value: FixedWidthInteger & BitwiseCopyable>(
        _ type: Value.Type, at address: GuestVirtualAddress
    ) throws(MemoryError) -> Value {
        let size = MemoryLayout<Value>.size
        let translation = try translate(address)
        if translation.bytesToPageEnd >= UInt64(size) { return try physical.load(type, at: translation.physical) }
        var value: Value = 0
        try withUnsafeMutablePointer(to: &value) { (pointer) throws(MemoryError) in
            try read(at: address, into: UnsafeMutableRawBufferPointer(start: pointer, count: size))
        }
        return Value(littleEndian: value)
    }

    /// The usual load: 4 levels, tables and page in the largest region, nothing reserved set, a 4 KiB or 2 MiB
    /// page. nil for all else, errors included: `translate` is what decides.
    @inline(__always) @inlinable func loadDirectly<Value: FixedWidthInteger & BitwiseCopyable>(
        _ type: Value.Type, at address: GuestVirtualAddress
    ) -> Value? {
        let raw = address.rawValue
        let mask = PageTableEntry.addressMask
        // P set; PS and, without EFER.NXE, bit 63 clear.
        let checked = forbidden | 0x81
        guard UInt64(bitPattern: (Int64(bitPattern: raw) &<< 16) &>> 16) == raw else { return nil }
        var place = root &+ (raw &>> 36) & 0xff8
        guard place <= last else { return nil }
        var entry = start.loadUnaligned(fromByteOffset: Int(truncatingIfNeeded: place), as: UInt64.self)
        guard entry & checked == 1 else { return nil }
        place = (entry & mask | (raw &>> 27) & 0xff8) &- base
        guard place <= last else { return nil }
        entry = start.loadUnaligned(fromByteOffset: Int(truncatingIfNeeded: place), as: UInt64.self)
        guard entry & checked == 1 else { return nil }
        place = (entry & mask | (raw &>> 18) & 0xff8) &- base
        guard place <= last else { return nil }
        entry = start.loadUnaligned(fromByteOffset: Int(truncatingIfNeeded: place), as: UInt64.self)
        let offset: UInt64
        if entry & checked == 1 {
            place = (entry & mask | (raw &>> 9) & 0xff8) &- base
            guard place <= last else { return nil }
            entry = start.loadUnaligned(fromByteOffset: Int(truncatingIfNeeded: place), as: UInt64.self)
            guard entry & (forbidden | 1) == 1 else { return nil }
            offset = raw & 0xfff
        } else {
            // 2 MiB: bits 20 to 13 are reserved.
            guard entry & (forbidden | 0x1f_e081) == 0x81 else { return nil }
            entry &= ~0x1f_ffff
            offset = raw & 0x1f_ffff
        }
        let size = UInt64(truncatingIfNeeded: MemoryLayout<Value>.size)
        guard raw & 0xfff <= 4096 &- size else { return nil }
        place = (entry & mask | offset) &- base
        guard place <= last &+ 8 &- size else { return nil }
        return Value(littleEndian: start.loadUnaligned(fromByteOffset: Int(truncatingIfNeeded: place), as: Value.self))
    }

    /// Where `address` is now, and with which rights.
    /// - Throws: `notPresent` with the entry that is not; `reservedBits` for entries that a processor rejects;
    ///   `notRAM` where a table lies outside RAM; `notCanonical`. That the page itself is RAM is found out by
    ///   reading it.
    @inlinable public func translate(_ address: GuestVirtualAddress) throws(MemoryError) -> Translation {
        if case .fourLevel = space.mode { return try walk(address, from: 4) }
        return try translateInOtherModes(address)
    }

    @usableFromInline func translateInOtherModes(
        _ address: GuestVirtualAddress
    ) throws(MemoryError) -> Translation {
        switch space.mode {
        case .fourLevel: return try walk(address, from: 4)
        case .fiveLevel: return try walk(address, from: 5)
        case .pae: return try walkPAE(address)
        case .legacy32(let largePages): return try walk32(address, largePages: largePages)
        case .none:
            guard space.mode.isCanonical(address) else { throw .notCanonical(address) }
            return Translation(
                physical: GuestPhysicalAddress(address.rawValue), pageSize: 4096,
                rights: [.writable, .user, .executable], entry: 0)
        }
    }

    /// 4- and 5-level paging. Intel SDM volume 3, 4.5.
    @inline(__always) @inlinable func walk(
        _ address: GuestVirtualAddress, from levels: Int
    ) throws(MemoryError) -> Translation {
        let unused = Int64(truncatingIfNeeded: 52 &- 9 &* levels)
        let extended = (Int64(bitPattern: address.rawValue) &<< unused) &>> unused
        guard UInt64(bitPattern: extended) == address.rawValue else { throw .notCanonical(address) }
        return try descend(address, table: space.root & PageTableEntry.addressMask, from: levels, reserved: 0)
    }

    /// PAE paging: four pointers, then two levels of 64-bit entries. Intel SDM volume 3, 4.4. The processor
    /// loads the pointers with CR3; their copies in memory are read here.
    @inlinable func walkPAE(_ address: GuestVirtualAddress) throws(MemoryError) -> Translation {
        guard space.mode.isCanonical(address) else { throw .notCanonical(address) }
        let table = GuestPhysicalAddress(space.root & 0xffff_ffe0)
        let pointer = PageTableEntry(try physical.load(UInt64.self, at: table + (address.rawValue >> 30) &* 8))
        guard pointer.isPresent else { throw .notPresent(address, entry: pointer.rawValue, level: 3) }
        // Bits 2, 1, 8 to 5 and 63 to 52 are reserved; the pointer restricts no rights. QEMU's TCG sets bit 5 in memory,
        // as if the pointer were an entry like others.
        guard pointer.rawValue & 0xfff0_0000_0000_01c6 == 0 else {
            throw .reservedBits(address, entry: pointer.rawValue, level: 3)
        }
        return try descend(address, table: pointer.address, from: 2, reserved: 0x7ff0_0000_0000_0000)
    }

    /// Walks tables of 64-bit entries down to the page.
    /// - Parameter reserved: bits that must be zero at every level, bit 63 aside.
    @inline(__always) @inlinable func descend(
        _ address: GuestVirtualAddress, table root: UInt64, from levels: Int, reserved: UInt64
    ) throws(MemoryError) -> Translation {
        let reserved = space.executeDisableEnabled ? reserved : reserved | 1 << 63
        // Only P, of P, PS and the reserved bits: an entry that leads to another table.
        let tableBits = reserved | 1 << 7 | 1
        var table = root
        // Rights are what all levels grant, execution what none forbids.
        var common = UInt64.max
        var any: UInt64 = 0
        var level = levels
        while true {
            let shift = UInt64(truncatingIfNeeded: 3 &+ 9 &* level)
            let index = (address.rawValue &>> shift) & 511
            let entry = PageTableEntry(try physical.load(UInt64.self, at: GuestPhysicalAddress(table &+ index &* 8)))
            common &= entry.rawValue
            any |= entry.rawValue
            if level > 1, entry.rawValue & tableBits == 1 {
                table = entry.address
                level &-= 1
                continue
            }
            try Self.checkPage(entry, of: address, level: level, reserved: reserved)
            let offsetMask = (UInt64(1) &<< shift) &- 1
            return Translation(
                physical: GuestPhysicalAddress(entry.address & ~offsetMask | address.rawValue & offsetMask),
                pageSize: offsetMask &+ 1, rights: .init(common: common, any: any, last: entry),
                entry: entry.rawValue)
        }
    }

    /// Throws unless `entry` maps a page at `level`.
    @inline(__always) @inlinable static func checkPage(
        _ entry: PageTableEntry, of address: GuestVirtualAddress, level: Int, reserved: UInt64
    ) throws(MemoryError) {
        guard entry.isPresent else { throw .notPresent(address, entry: entry.rawValue, level: level) }
        var mustBeZero = reserved
        if level > 3 {
            // PS: no page is that large.
            mustBeZero |= 1 << 7
        } else if level > 1 {
            // From the page's lowest address bit down to bit 13; bit 12 is PAT.
            mustBeZero |= ((UInt64(1) &<< UInt64(truncatingIfNeeded: 3 &+ 9 &* level)) &- 1) & ~0x1fff
        }
        guard entry.rawValue & mustBeZero == 0 else {
            throw .reservedBits(address, entry: entry.rawValue, level: level)
        }
    }

    /// 32-bit paging with 4 KiB and 4 MiB pages, PSE-36 included. Intel SDM volume 3, 4.3.
    @inlinable func walk32(_ address: GuestVirtualAddress, largePages: Bool) throws(MemoryError) -> Translation {
        guard space.mode.isCanonical(address) else { throw .notCanonical(address) }
        var rights: Translation.Rights = [.writable, .user, .executable]
        let directory = GuestPhysicalAddress(space.root & 0xffff_f000)
        let upper = PageTableEntry(
            UInt64(try physical.load(UInt32.self, at: directory + (address.rawValue >> 22) &* 4)))
        guard upper.isPresent else { throw .notPresent(address, entry: upper.rawValue, level: 2) }
        if !upper.isWritable { rights.remove(.writable) }
        if !upper.isUser { rights.remove(.user) }
        if largePages, upper.isLargePage {
            guard upper.rawValue & (1 << 21) == 0 else {
                throw .reservedBits(address, entry: upper.rawValue, level: 2)
            }
            if upper.isGlobal { rights.insert(.global) }
            // Bits 20 to 13 are bits 39 to 32 of the address.
            let page = upper.rawValue & 0xffc0_0000 | (upper.rawValue & 0x001f_e000) << 19
            return Translation(
                physical: GuestPhysicalAddress(page | address.rawValue & 0x3f_ffff), pageSize: 1 << 22,
                rights: rights, entry: upper.rawValue)
        }
        let table = GuestPhysicalAddress(upper.rawValue & 0xffff_f000)
        let lower = PageTableEntry(
            UInt64(try physical.load(UInt32.self, at: table + ((address.rawValue >> 12) & 1023) &* 4)))
        guard lower.isPresent else { throw .notPresent(address, entry: lower.rawValue, level: 1) }
        if !lower.isWritable { rights.remove(.writable) }
        if !lower.isUser { rights.remove(.user) }
        if lower.isGlobal { rights.insert(.global) }
        return Translation(
            physical: GuestPhysicalAddress(lower.rawValue & 0xffff_f000 | address.rawValue & 0xfff),
            pageSize: 4096, rights: rights, entry: lower.rawValue)
    }
}
