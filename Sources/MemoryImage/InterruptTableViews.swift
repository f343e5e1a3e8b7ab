import GuestMemory

/// Where interrupt tables, known by their physical addresses, are in the address spaces of several roots of page tables.
///
/// Tables below a root's first level are followed once for all roots that share them. Page tables are hostile input:
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
        var index: Int
        var table: UInt64
    }

    private let memory: PhysicalMemory
    /// Ascending.
    private let interruptTables: [UInt64]
    private var known: [Branch: [View]] = [:]
    private var tablesRead = 0
    private var viewsFound = 0

    /// - Parameter interruptTables: their physical addresses, ascending.
    init(_ memory: PhysicalMemory, interruptTables: [UInt64]) {
        self.memory = memory
        self.interruptTables = interruptTables
    }

    /// The interrupt tables that the upper half of a root's address space shows.
    mutating func seen(from root: UInt64, entries: [UInt64]) throws(TableSearchError) -> [View] {
        guard !interruptTables.isEmpty else { return [] }
        var views: [View] = []
        for index in 256..<512 {
            let entry = entries[index]
            let next = entry & PageExamination.addressMask
            // PS is reserved here. The root itself shows nothing but tables.
            guard entry & 0x81 == 1, next != root else { continue }
            let branch = Branch(index: index, table: next)
            if let earlier = known[branch] {
                views += earlier
                continue
            }
            var found: [View] = []
            try follow(next, level: 3, prefix: 0xffff << 48 | UInt64(index) << 39, &found)
            known[branch] = found
            views += found
        }
        return views
    }

    private mutating func follow(
        _ address: UInt64, level: Int, prefix: UInt64, _ views: inout [View]
    ) throws(TableSearchError) {
        guard let table = try table(at: address) else { return }
        let shift = UInt64(12 + 9 * (level - 1))
        for index in 0..<512 {
            let entry = table[index]
            guard entry & 1 != 0 else { continue }
            let virtual = prefix | UInt64(index) << shift
            if level > 1, entry & (1 << 7) == 0 {
                try follow(entry & PageExamination.addressMask, level: level - 1, prefix: virtual, &views)
                continue
            }
            let size = UInt64(1) << shift
            try add(page: entry & PageExamination.addressMask & ~(size - 1), size: size, at: virtual, &views)
        }
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
    mutating func table(at address: UInt64) throws(TableSearchError) -> [UInt64]? {
        tablesRead += 1
        guard tablesRead <= Self.maximumTables else { throw .tooMany("page tables", limit: Self.maximumTables) }
        var entries = [UInt64](repeating: 0, count: 512)
        do throws(MemoryError) {
            try entries.withUnsafeMutableBufferPointer { (buffer) throws(MemoryError) in
                try memory.read(at: GuestPhysicalAddress(address), into: UnsafeMutableRawBufferPointer(buffer))
            }
            return entries
        } catch .notRAM {
            return nil
        } catch {
            throw .memory(error)
        }
    }
}
