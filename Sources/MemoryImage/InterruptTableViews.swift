import GuestMemory

/// Where interrupt tables, known by their physical addresses, are in the address spaces of several roots of page tables
/// of one kind.
///
/// Tables below a root are followed once for all roots that share them. Page tables are hostile input:
/// the tables followed, and what they show, have limits.
struct InterruptTableViews {
    struct View: Equatable {
        var physical: UInt64
        /// Its virtual address.
        var address: UInt64
    }

    /// Enough for 256 GiB of pages of 4 KiB.
    private static let maximumTables = 1 << 17
    private static let maximumViews = 1 << 14

    private struct Branch: Hashable {
        var prefix: UInt64
        var level: Int
        var table: UInt64
    }

    private let memory: PhysicalMemory
    private let format: RootFormat
    private var mode: PagingMode { format.pagingMode }
    /// Ascending.
    private let interruptTables: [UInt64]
    private var known: [Branch: [View]] = [:]
    private var tablesRead = 0
    private var viewsFound = 0

    /// - Parameter interruptTables: their physical addresses, ascending.
    init(_ memory: PhysicalMemory, format: RootFormat, interruptTables: [UInt64]) {
        self.memory = memory
        self.format = format
        self.interruptTables = interruptTables
    }

    /// The interrupt tables that the upper half of a root's address space shows.
    mutating func seen(from root: UInt64, entries: [UInt64]) throws(TableSearchError) -> [View] {
        guard !interruptTables.isEmpty else { return [] }
        var views: [View] = []
        for index in format.upperHalf {
            let entry = entries[index]
            // The root itself shows nothing but tables.
            guard entry & 1 != 0, entry & PageExamination.addressMask != root else { continue }
            let address = format.extension64 | UInt64(index) * mode.span(ofLevel: mode.levels)
            if entry & 1 << 7 == 0 {
                views += try seen(below: entry, level: mode.levels - 1, prefix: address)
            } else if format == .legacy {
                try add(largePage: entry, at: address, &views)
            }
        }
        return views
    }

    /// What a table shows that an entry leads to.
    private mutating func seen(
        below entry: UInt64, level: Int, prefix: UInt64
    ) throws(TableSearchError) -> [View] {
        let branch = Branch(prefix: prefix, level: level, table: entry & PageExamination.addressMask)
        if let earlier = known[branch] { return earlier }
        var views: [View] = []
        for (index, entry) in (try table(at: branch.table) ?? []).enumerated() where entry & 1 != 0 {
            let virtual = prefix | UInt64(index) * mode.span(ofLevel: level)
            if level > 1, entry & (1 << 7) == 0 {
                views += try seen(below: entry, level: level - 1, prefix: virtual)
                continue
            }
            let size = mode.span(ofLevel: level)
            try add(page: entry & PageExamination.addressMask & ~(size - 1), size: size, at: virtual, &views)
        }
        known[branch] = views
        return views
    }

    /// A page of 4 MiB in 32-bit paging. Intel SDM volume 3, 4.3.
    private mutating func add(
        largePage entry: UInt64, at virtual: UInt64, _ views: inout [View]
    ) throws(TableSearchError) {
        let page = entry & 0xffc0_0000 | (entry & 0x001f_e000) << 19
        try add(page: page, size: 1 << 22, at: virtual, &views)
    }

    private mutating func add(
        page: UInt64, size: UInt64, at virtual: UInt64, _ views: inout [View]
    ) throws(TableSearchError) {
        // The first interrupt table in the page or behind it, by bisection.
        var low = 0
        var high = interruptTables.count
        while low < high {
            let middle = (low + high) / 2
            if interruptTables[middle] < page { low = middle + 1 } else { high = middle }
        }
        while low < interruptTables.count, interruptTables[low] - page < size {
            viewsFound += 1
            guard viewsFound <= Self.maximumViews else {
                throw .tooMany("mappings of interrupt tables", limit: Self.maximumViews)
            }
            views.append(View(physical: interruptTables[low], address: virtual + (interruptTables[low] - page)))
            low += 1
        }
    }

    /// A table's entries; nil where it lies outside memory.
    mutating func table(at address: UInt64, isRoot: Bool = false) throws(TableSearchError) -> [UInt64]? {
        tablesRead += 1
        guard tablesRead <= Self.maximumTables else { throw .tooMany("page tables", limit: Self.maximumTables) }
        // PAE's four pointers are no page of their own.
        let isPointers = format == .pae && isRoot
        var bytes = [UInt8](repeating: 0, count: isPointers ? 32 : PageExamination.pageSize)
        do throws(MemoryError) {
            try bytes.withUnsafeMutableBufferPointer { (buffer) throws(MemoryError) in
                try memory.read(at: GuestPhysicalAddress(address), into: UnsafeMutableRawBufferPointer(buffer))
            }
            return bytes.withUnsafeBytes { bytes in
                stride(from: 0, to: bytes.count, by: mode.entrySize).map { place in
                    mode.entrySize == 8
                        ? bytes.load(fromByteOffset: place, as: UInt64.self)
                        : UInt64(bytes.load(fromByteOffset: place, as: UInt32.self))
                }
            }
        } catch .notRAM {
            return nil
        } catch {
            throw .memory(error)
        }
    }
}
