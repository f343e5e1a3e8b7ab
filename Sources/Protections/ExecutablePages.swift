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

    /// Entries can forbid execution. Where they cannot, every page of the process's is here.
    let canForbid: Bool
    /// In order of their addresses.
    private(set) var pages: [GuestVirtualAddress] = []
    private(set) var tablesRead = 0
    /// There was more than is read.
    private(set) var isTruncated = false

    private let physical: PhysicalMemory
    private let mode: PagingMode

    /// The pointers of PAE's root restrict no rights, and map no page. Intel SDM volume 3, 4.4.1.
    private var rootHasRights: Bool { mode != .pae }

    /// Reads the tables that `memory` has as its root.
    /// - Throws: where RAM is out of reach. A table that is none is left out.
    init(_ memory: KernelMemory) throws(MemoryError) {
        physical = memory.physical
        mode = memory.pagingMode
        canForbid = memory.space.executeDisableEnabled && mode.entriesCanForbidExecution
        if mode == .none { return }
        let buffers = (0..<mode.levels).map { _ in
            UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 8)
        }
        defer { for buffer in buffers { buffer.deallocate() } }
        try walk(GuestPhysicalAddress(mode.rootAddress(memory.space.root)), level: mode.levels, at: 0, buffers)
    }

    private mutating func walk(
        _ table: GuestPhysicalAddress, level: Int, at base: UInt64, _ buffers: [UnsafeMutableRawBufferPointer]
    ) throws(MemoryError) {
        guard tablesRead < Self.maximumTables, pages.count < Self.maximumPages else {
            isTruncated = true
            return
        }
        tablesRead += 1
        let isRoot = level == mode.levels
        // The upper half is the kernel's.
        let count = isRoot ? mode.rootEntriesOfHalf : 1 << mode.indexBits
        let buffer = UnsafeMutableRawBufferPointer(rebasing: buffers[level - 1][..<(count * mode.entrySize)])
        do throws(MemoryError) {
            try physical.read(at: table, into: buffer)
        } catch .unreachable(let address, let errno) {
            throw .unreachable(address, errno: errno)
        } catch {
            return
        }
        let size = mode.span(ofLevel: level)
        for index in 0..<count {
            let value =
                mode.entrySize == 8
                ? UInt64(littleEndian: buffer.load(fromByteOffset: 8 * index, as: UInt64.self))
                : UInt64(UInt32(littleEndian: buffer.load(fromByteOffset: 4 * index, as: UInt32.self)))
            if value == 0 { continue }
            let entry = PageTableEntry(value)
            let address = base + UInt64(index) * size
            guard entry.isPresent else {
                if level == 1, Self.isExecutable(absent: entry.rawValue) {
                    pages.append(GuestVirtualAddress(address))
                }
                continue
            }
            // Under page-table isolation Windows forbids execution of the whole user half in the kernel's own root,
            // while the process executes through another one with the same tables below: the root says nothing.
            guard entry.isUser || (isRoot && !rootHasRights), isRoot || !entry.isExecuteDisabled else {
                continue
            }
            if level == 1 {
                pages.append(GuestVirtualAddress(address))
            } else if level <= 3, entry.isLargePage, !isRoot || rootHasRights {
                guard pages.count + Int(size / 4096) <= Self.maximumPages else {
                    isTruncated = true
                    return
                }
                for offset in stride(from: 0, to: size, by: 4096) {
                    pages.append(GuestVirtualAddress(address + offset))
                }
            } else {
                try walk(GuestPhysicalAddress(entry.address), level: level - 1, at: address, buffers)
            }
        }
    }

    /// Whether Windows would let a page be executed that is not present. Its entry keeps the protection in bits 9 to 5,
    /// of which bit 6 is set in all that allow execution (`_MMPTE_SOFTWARE`, MM_EXECUTE and its like).
    static func isExecutable(absent entry: UInt64) -> Bool { entry & 1 == 0 && entry & (1 << 6) != 0 }
}
