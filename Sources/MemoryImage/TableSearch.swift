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

/// Finds page tables and interrupt tables of a system in memory whose vCPUs' registers are not known.
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
        var result: [ProcessorTables] = []
        for format in RootFormat.allCases {
            // The roots of both look alike, and one machine does not use both.
            if format == .fiveLevel, !result.isEmpty { continue }
            try addTables(of: format, candidates, to: &result)
        }
        return result
    }

    private func addTables(
        of format: RootFormat, _ candidates: Candidates, to result: inout [ProcessorTables]
    ) throws(TableSearchError) {
        let interruptTables = format.is64Bit ? candidates.interruptTables : candidates.interruptTables32
        var views = InterruptTableViews(memory, format: format, interruptTables: interruptTables)
        var handlers: [UInt64: [UInt64]] = [:]
        for table in interruptTables { handlers[table] = try self.handlers(of: table, format) }
        var seen: Set<System> = []
        var pairs = 0
        for root in candidates.roots(of: format) {
            if isCancelled() { throw .cancelled }
            guard let entries = try views.table(at: root, isRoot: true) else { continue }
            for view in try views.seen(from: root, entries: entries) {
                pairs += 1
                guard pairs <= Self.maximumPairs else {
                    throw .tooMany("page tables that map interrupt tables", limit: Self.maximumPairs)
                }
                guard let handlers = handlers[view.physical] else { continue }
                let system = System(
                    interruptTable: view.physical, branches: branches(to: handlers, root: entries, format))
                guard seen.insert(system).inserted, areMapped(handlers, from: root, format) else { continue }
                guard result.count < Self.maximumResults else {
                    throw .tooMany("interrupt tables in use", limit: Self.maximumResults)
                }
                result.append(
                    ProcessorTables(
                        control: format.control(root: root), idtBase: GuestVirtualAddress(view.address),
                        idtLimit: format.is64Bit ? 0xfff : 0x7ff, gdtBase: GuestVirtualAddress(0), gdtLimit: 0,
                        isInferred: true))
            }
        }
    }

    // MARK: The pass over all of memory

    private struct Candidates {
        /// Physical addresses, ascending.
        var roots: [UInt64] = []
        var interruptTables: [UInt64] = []
        /// Of 32-bit systems.
        var directories: [UInt64] = []
        var pointerTables: [(address: UInt64, lastDirectory: UInt64)] = []
        var lastDirectories: Set<UInt64> = []
        var interruptTables32: [UInt64] = []

        func roots(of format: RootFormat) -> [UInt64] {
            switch format {
            case .fourLevel, .fiveLevel: roots
            case .pae: pointerTables.filter { lastDirectories.contains($0.lastDirectory) }.map(\.address)
            case .legacy: directories
            }
        }

        var rootCount: Int { roots.count + directories.count + pointerTables.count + lastDirectories.count }
        var interruptTableCount: Int { interruptTables.count + interruptTables32.count }
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
            PageExamination.forEachInterruptTable32(in: page) { offset in
                candidates.interruptTables32.append(address + UInt64(offset))
            }
            // CR3 has 32 bits there.
            if address >> 32 != 0 { continue }
            if PageExamination.isDirectory(page, at: address) { candidates.directories.append(address) }
            if PageExamination.isLastDirectory(page, at: address) { candidates.lastDirectories.insert(address) }
            PageExamination.forEachPointerTable(in: page) { offset, last in
                candidates.pointerTables.append((address + UInt64(offset), last))
            }
        }
        guard candidates.rootCount <= Self.maximumRoots else {
            throw .tooMany("pages that could be a root of page tables", limit: Self.maximumRoots)
        }
        guard candidates.interruptTableCount <= Self.maximumInterruptTables else {
            throw .tooMany("interrupt tables", limit: Self.maximumInterruptTables)
        }
    }

    // MARK: What belongs together

    /// The processes of a system have roots of their own, but the kernel's tables below them in common: one of them
    /// is enough.
    private struct System: Hashable {
        var interruptTable: UInt64
        /// The tables for the handlers that it has in common with others.
        var branches: [UInt64]
    }

    /// The tables below all that processes have of their own: the root, and PAE's directories.
    private func branches(to handlers: [UInt64], root: [UInt64], _ format: RootFormat) -> [UInt64] {
        handlers.map { handler in
            let index = handler / format.pagingMode.span(ofLevel: format.pagingMode.levels)
            let entry = root[Int(index) & (root.count - 1)] & PageExamination.addressMask
            guard format == .pae else { return entry }
            let place = GuestPhysicalAddress(entry + (handler >> 21 & 511) * 8)
            return ((try? memory.load(UInt64.self, at: place)) ?? 0) & PageExamination.addressMask
        }
    }

    /// Where the gates of an interrupt table in memory lead.
    private func handlers(of table: UInt64, _ format: RootFormat) throws(TableSearchError) -> [UInt64] {
        let gateSize = format.is64Bit ? 16 : 8
        var gates = [UInt8](repeating: 0, count: 15 * gateSize)
        do throws(MemoryError) {
            try gates.withUnsafeMutableBufferPointer { (buffer) throws(MemoryError) in
                try memory.read(at: GuestPhysicalAddress(table), into: UnsafeMutableRawBufferPointer(buffer))
            }
        } catch {
            throw .memory(error)
        }
        return gates.withUnsafeBytes { gates in
            format.is64Bit
                ? PageExamination.vectors.compactMap { PageExamination.handler(in: gates, at: $0 * 16) }
                : PageExamination.vectors32.compactMap { PageExamination.handler32(in: gates, at: $0 * 8) }
        }
    }

    private func areMapped(_ handlers: [UInt64], from root: UInt64, _ format: RootFormat) -> Bool {
        let control = format.control(root: root)
        let space = VirtualMemory(physical: memory, space: AddressSpace(control))
        let wanted = format.is64Bit ? PageExamination.vectors.count : PageExamination.vectors32.count
        // Fewer where the file has changed since.
        return handlers.count == wanted
            && handlers.allSatisfy { handler in
                guard let place = try? space.translate(GuestVirtualAddress(handler)) else { return false }
                return place.isExecutable && !place.isUser
            }
    }
}
