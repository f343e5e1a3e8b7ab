import GuestMemory
import WindowsGuest
import X86

/// The pages of a process's half of an address space that can be executed, read from its page tables.
///
/// Tables are guest memory: a table can be its own child, so that a walk would not end. A walk reads a bounded number
/// of tables, and says when there were more.
struct ExecutablePages {
    /// 16 GiB of pages, if the tables are full.
    static let maximumTables = 8192
    /// Of 4 KiB each, 256 MiB in all: copies of them are kept.
    static let maximumPages = 1 << 16

    /// In order of their addresses.
    private(set) var pages: [GuestVirtualAddress] = []
    private(set) var tablesRead = 0
    /// There was more than is read.
    private(set) var isTruncated = false

    private let physical: PhysicalMemory

    /// Reads the tables that `memory` has as its root. Only 4- and 5-level tables; others have no pages here.
    /// - Throws: where RAM is out of reach. A table that is none is left out.
    init(_ memory: KernelMemory) throws(MemoryError) {
        physical = memory.physical
        let levels: Int
        switch memory.pagingMode {
        case .fourLevel: levels = 4
        case .fiveLevel: levels = 5
        default: return
        }
        let buffers = (0..<levels).map { _ in UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 8) }
        defer { for buffer in buffers { buffer.deallocate() } }
        try walk(
            GuestPhysicalAddress(memory.space.root & PageTableEntry.addressMask), level: levels, top: levels, at: 0,
            buffers)
    }

    private mutating func walk(
        _ table: GuestPhysicalAddress, level: Int, top: Int, at base: UInt64,
        _ buffers: [UnsafeMutableRawBufferPointer]
    ) throws(MemoryError) {
        guard tablesRead < Self.maximumTables, pages.count < Self.maximumPages else {
            isTruncated = true
            return
        }
        tablesRead += 1
        let buffer = buffers[level - 1]
        do throws(MemoryError) {
            try physical.read(at: table, into: buffer)
        } catch .unreachable(let address, let errno) {
            throw .unreachable(address, errno: errno)
        } catch {
            return
        }
        let entries = UnsafeRawBufferPointer(buffer).bindMemory(to: UInt64.self)
        // The upper half is the kernel's.
        let count = level == top ? 256 : 512
        let size = UInt64(4096) << UInt64(9 * (level - 1))
        for index in 0..<count where entries[index] != 0 {
            let entry = PageTableEntry(UInt64(littleEndian: entries[index]))
            let address = base + UInt64(index) * size
            guard entry.isPresent else {
                if level == 1, Self.isExecutable(absent: entry.rawValue) {
                    pages.append(GuestVirtualAddress(address))
                }
                continue
            }
            // Under page-table isolation Windows forbids execution of the whole user half in the kernel's own root,
            // while the process executes through another one with the same tables below: the root says nothing.
            guard entry.isUser, level == top || !entry.isExecuteDisabled else { continue }
            if level == 1 {
                pages.append(GuestVirtualAddress(address))
            } else if level <= 3, entry.isLargePage {
                guard pages.count + Int(size / 4096) <= Self.maximumPages else {
                    isTruncated = true
                    return
                }
                for offset in stride(from: 0, to: size, by: 4096) {
                    pages.append(GuestVirtualAddress(address + offset))
                }
            } else {
                try walk(GuestPhysicalAddress(entry.address), level: level - 1, top: top, at: address, buffers)
            }
        }
    }

    /// Whether Windows would let a page be executed that is not present. Its entry keeps the protection in bits 9 to 5,
    /// of which bit 6 is set in all that allow execution (`_MMPTE_SOFTWARE`, MM_EXECUTE and its like).
    static func isExecutable(absent entry: UInt64) -> Bool { entry & 1 == 0 && entry & (1 << 6) != 0 }
}
