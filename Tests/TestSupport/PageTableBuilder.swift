import GuestMemory

/// Lays out 4- or 5-level page tables in synthetic RAM.
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
    public let levels: Int

    public init(ram: SyntheticRAM, levels: Int = 4) {
        self.ram = ram
        self.levels = levels
        root = ram.allocate()
    }

    public var space: AddressSpace {
        AddressSpace(root: root, mode: levels == 5 ? .fiveLevel : .fourLevel)
    }

    public var memory: VirtualMemory { VirtualMemory(physical: ram.physical, space: space) }

    /// The physical address of the entry of `level` that translates an address, tables above it made if needed.
    public func entryAddress(of address: UInt64, level: Int = 1) -> UInt64 {
        var table = root
        var current = levels
        while true {
            let location = table + ((address >> UInt64(12 + 9 * (current - 1))) & 511) * 8
            if current == level { return location }
            var entry = ram.load(UInt64.self, at: location)
            if entry & 1 == 0 {
                // Tables restrict nothing: their pages' entries do.
                entry = ram.allocate() | 0x7
                ram.store(entry, at: location)
            }
            table = entry & 0x000f_ffff_ffff_f000
            current -= 1
        }
    }

    /// Maps one page: of 4 KiB at level 1, 2 MiB at level 2, 1 GiB at level 3.
    public func map(_ address: UInt64, to physical: UInt64, _ flags: Flags, level: Int = 1) {
        let size = level > 1 ? Flags.large.rawValue : 0
        ram.store(physical | flags.rawValue | size, at: entryAddress(of: address, level: level))
    }

    /// Maps `pages` new pages from `address` on.
    /// - Returns: the physical address of the first; they adjoin.
    @discardableResult
    public func mapNew(_ address: UInt64, pages: Int = 1, _ flags: Flags) -> UInt64 {
        let physical = ram.allocate(pages: pages)
        for index in 0..<UInt64(pages) { map(address + index * 4096, to: physical + index * 4096, flags) }
        return physical
    }

    public func unmap(_ address: UInt64) { ram.store(UInt64(0), at: entryAddress(of: address)) }

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
