import GuestMemory

/// Lays out page tables of any paging mode in synthetic RAM.
public struct PageTableBuilder {
    public struct Flags: OptionSet, Sendable {
        public let rawValue: UInt64
        public init(rawValue: UInt64) { self.rawValue = rawValue }
        public static let present = Flags(rawValue: 1)
        public static let writable = Flags(rawValue: 1 << 1)
        public static let user = Flags(rawValue: 1 << 2)
        public static let large = Flags(rawValue: 1 << 7)
        public static let global = Flags(rawValue: 1 << 8)
        public static let noExecute = Flags(rawValue: 1 << 63)
        public static let kernelCode: Flags = [.present]
        public static let kernelData: Flags = [.present, .writable, .noExecute]
        public static let userCode: Flags = [.present, .user]
        public static let userData: Flags = [.present, .writable, .user, .noExecute]
    }

    public let ram: SyntheticRAM
    public let root: UInt64
    public let mode: PagingMode

    public init(ram: SyntheticRAM, levels: Int = 4) {
        self.init(ram: ram, mode: levels == 5 ? .fiveLevel : .fourLevel)
    }

    public init(ram: SyntheticRAM, mode: PagingMode) {
        self.ram = ram
        self.mode = mode
        root = ram.allocate()
    }

    public var levels: Int {
        switch mode {
        case .none, .legacy32: 2
        case .pae: 3
        case .fourLevel: 4
        case .fiveLevel: 5
        }
    }

    /// In bytes.
    var entryWidth: UInt64 { if case .legacy32 = mode { 4 } else { 8 } }

    public var space: AddressSpace { AddressSpace(root: root, mode: mode) }

    public var memory: VirtualMemory { VirtualMemory(physical: ram.physical, space: space) }

    /// An entry, whose flags above 32 bits 32-bit paging does not have.
    public func entry(at location: UInt64) -> UInt64 {
        entryWidth == 8 ? ram.load(UInt64.self, at: location) : UInt64(ram.load(UInt32.self, at: location))
    }

    public func setEntry(at location: UInt64, to entry: UInt64) {
        if entryWidth == 8 {
            ram.store(entry, at: location)
        } else {
            ram.store(UInt32(truncatingIfNeeded: entry), at: location)
        }
    }

    /// The physical address of the entry of `level` that translates an address, tables above it made if needed.
    public func entryAddress(of address: UInt64, level: Int = 1) -> UInt64 {
        let width: UInt64 = entryWidth == 4 ? 10 : 9
        var table = root
        var current = levels
        while true {
            let location = table + ((address >> (12 + width * UInt64(current - 1))) & ((1 << width) - 1)) * entryWidth
            if current == level { return location }
            var entry = entry(at: location)
            if entry & 1 == 0 {
                // Tables restrict nothing: their pages' entries do. The four of PAE have no such bits.
                entry = ram.allocate() | (mode == .pae && current == 3 ? 1 : 7)
                setEntry(at: location, to: entry)
            }
            table = entry & 0x000f_ffff_ffff_f000
            current -= 1
        }
    }

    /// Maps one page: of 4 KiB at level 1, 2 MiB (32-bit paging: 4 MiB) at level 2, 1 GiB at level 3.
    public func map(_ address: UInt64, to physical: UInt64, _ flags: Flags, level: Int = 1) {
        let size = level > 1 ? Flags.large.rawValue : 0
        setEntry(at: entryAddress(of: address, level: level), to: physical | flags.rawValue | size)
    }

    /// Maps `pages` new pages from `address` on.
    /// - Returns: the physical address of the first; they adjoin.
    @discardableResult
    public func mapNew(_ address: UInt64, pages: Int = 1, _ flags: Flags) -> UInt64 {
        let physical = ram.allocate(pages: pages)
        for index in 0..<UInt64(pages) { map(address + index * 4096, to: physical + index * 4096, flags) }
        return physical
    }

    public func unmap(_ address: UInt64) { setEntry(at: entryAddress(of: address), to: 0) }

    /// Writes through the tables, whatever rights they give.
    public func write(_ source: [UInt8], at address: UInt64) {
        var done = 0
        while done < source.count {
            let translation = try! memory.translate(GuestVirtualAddress(address &+ UInt64(done)))
            let part = min(source.count - done, Int(translation.bytesToPageEnd))
            ram.store(Array(source[done..<done + part]), at: translation.physical.rawValue)
            done += part
        }
    }

    public func write<Value: FixedWidthInteger & BitwiseCopyable>(_ value: Value, at address: UInt64) {
        write(withUnsafeBytes(of: value.littleEndian) { Array($0) }, at: address)
    }
}
