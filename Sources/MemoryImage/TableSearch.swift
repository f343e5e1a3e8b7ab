import Foundation
import GuestMemory
import HypervisorInterface
import X86

/// Why memory could not be searched for tables. Each description completes "… cannot be used as a memory image:".
enum TableSearchError: Error, Equatable {
    case memory(MemoryError)
    /// More of something than any system has: what is found would be chance.
    case tooMany(String, limit: Int)
    case cancelled
}

extension TableSearchError: CustomStringConvertible {
    var description: String {
        switch self {
        case .memory(.unreachable(let address, let errno)):
            "what it holds of \(address) could not be read: \(String(cString: strerror(errno)))"
        case .memory(let error): "its memory could not be searched: \(error)"
        case .tooMany(let what, let limit):
            "its memory has more than \(limit) \(what), so that what is found there would be chance"
        case .cancelled: "the search for page tables was interrupted"
        }
    }
}

/// Finds page tables and interrupt tables of a 64-bit system in memory whose vCPUs' registers are not known.
///
/// All of memory is read once, for pages that could be a root of page tables and for interrupt tables. Then each
/// root is followed to the virtual addresses of the interrupt tables. One is taken where all the handlers that it
/// names are mapped, executable and not for programs. What it belongs to is for others to find out.
struct TableSearch {
    private static let maximumRoots = 1 << 16
    private static let maximumInterruptTables = 1 << 12
    private static let maximumPairs = 1 << 22
    private static let maximumResults = 256
    private static let pieceSize = 1 << 20

    private let memory: PhysicalMemory
    private let isCancelled: () -> Bool

    init(_ memory: PhysicalMemory, isCancelled: @escaping () -> Bool = { false }) {
        self.memory = memory
        self.isCancelled = isCancelled
    }

    func processorTables() throws(TableSearchError) -> [ProcessorTables] {
        let candidates = try candidates()
        var views = InterruptTableViews(memory, interruptTables: candidates.interruptTables)
        var handlers: [UInt64: [UInt64]] = [:]
        for table in candidates.interruptTables { handlers[table] = try self.handlers(of: table) }
        var seen: Set<System> = []
        var pairs = 0
        var result: [ProcessorTables] = []
        for root in candidates.roots {
            if isCancelled() { throw .cancelled }
            guard let entries = try views.table(at: root) else { continue }
            for view in try views.seen(from: root, entries: entries) {
                pairs += 1
                guard pairs <= Self.maximumPairs else {
                    throw .tooMany("page tables that map interrupt tables", limit: Self.maximumPairs)
                }
                guard let handlers = handlers[view.physical] else { continue }
                let system = System(interruptTable: view.physical, handlers: handlers, root: entries)
                guard seen.insert(system).inserted, areMapped(handlers, from: root) else { continue }
                guard result.count < Self.maximumResults else {
                    throw .tooMany("interrupt tables in use", limit: Self.maximumResults)
                }
                result.append(tables(view, from: root))
            }
        }
        return result
    }

    // MARK: The pass over all of memory

    private struct Candidates {
        /// Physical addresses, ascending.
        var roots: [UInt64] = []
        var interruptTables: [UInt64] = []
    }

    private func candidates() throws(TableSearchError) -> Candidates {
        var candidates = Candidates()
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.pieceSize, alignment: 4096)
        defer { buffer.deallocate() }
        for region in memory.regions {
            let end = (region.base.rawValue + region.length) & ~0xfff
            var place = (region.base.rawValue + 0xfff) & ~0xfff
            while place < end {
                if isCancelled() { throw .cancelled }
                let piece = UnsafeMutableRawBufferPointer(
                    rebasing: buffer[..<Int(min(end - place, UInt64(buffer.count)))])
                do throws(MemoryError) {
                    try memory.read(at: GuestPhysicalAddress(place), into: piece)
                } catch {
                    throw .memory(error)
                }
                try examine(UnsafeRawBufferPointer(piece), at: place, &candidates)
                place += UInt64(piece.count)
            }
        }
        return candidates
    }

    private func examine(
        _ piece: UnsafeRawBufferPointer, at place: UInt64, _ candidates: inout Candidates
    ) throws(TableSearchError) {
        for start in stride(from: 0, to: piece.count, by: PageExamination.pageSize) {
            let page = UnsafeRawBufferPointer(rebasing: piece[start..<start + PageExamination.pageSize])
            if PageExamination.isEmpty(page) { continue }
            let address = place + UInt64(start)
            if PageExamination.mapsItself(page, at: address) { candidates.roots.append(address) }
            PageExamination.forEachInterruptTable(in: page) { offset in
                candidates.interruptTables.append(address + UInt64(offset))
            }
        }
        guard candidates.roots.count <= Self.maximumRoots else {
            throw .tooMany("pages that could be a root of page tables", limit: Self.maximumRoots)
        }
        guard candidates.interruptTables.count <= Self.maximumInterruptTables else {
            throw .tooMany("interrupt tables", limit: Self.maximumInterruptTables)
        }
    }

    // MARK: What belongs together

    /// The processes of a system have roots of their own, but the kernel's tables below them in common: one of them
    /// is enough.
    private struct System: Hashable {
        var interruptTable: UInt64
        /// The tables that the root has for the handlers.
        var branches: [UInt64]

        init(interruptTable: UInt64, handlers: [UInt64], root: [UInt64]) {
            self.interruptTable = interruptTable
            branches = handlers.map { root[Int($0 >> 39 & 511)] & PageExamination.addressMask }
        }
    }

    /// Where the gates of an interrupt table in memory lead.
    private func handlers(of table: UInt64) throws(TableSearchError) -> [UInt64] {
        var gates = [UInt8](repeating: 0, count: 15 * 16)
        do throws(MemoryError) {
            try gates.withUnsafeMutableBufferPointer { (buffer) throws(MemoryError) in
                try memory.read(at: GuestPhysicalAddress(table), into: UnsafeMutableRawBufferPointer(buffer))
            }
        } catch {
            throw .memory(error)
        }
        return gates.withUnsafeBytes { gates in
            PageExamination.vectors.compactMap { PageExamination.handler(in: gates, at: $0 * 16) }
        }
    }

    private func areMapped(_ handlers: [UInt64], from root: UInt64) -> Bool {
        let space = VirtualMemory(physical: memory, space: AddressSpace(root: root, mode: .fourLevel))
        // Fewer where the file has changed since.
        return handlers.count == PageExamination.vectors.count
            && handlers.allSatisfy { handler in
                guard let place = try? space.translate(GuestVirtualAddress(handler)) else { return false }
                return place.isExecutable && !place.isUser
            }
    }

    private func tables(_ view: InterruptTableViews.View, from root: UInt64) -> ProcessorTables {
        // PE and PG; PAE; long mode.
        let control = ControlRegisters(
            cr0: 1 << 31 | 1, cr3: root, cr4: 1 << 5, efer: QEMUProcessorState.longMode)
        return ProcessorTables(
            control: control, idtBase: GuestVirtualAddress(view.address), idtLimit: 0xfff,
            gdtBase: GuestVirtualAddress(0), gdtLimit: 0, isInferred: true)
    }
}
