import GuestMemory
import HypervisorInterface
import WindowsGuest

/// The tables that lead from a system call's number to its function, and the code that reads them.
final class ServiceTables {
    private var descriptorSize: Int { Int(architecture.layout.serviceDescriptorSize) }

    /// Bytes that nobody may change.
    private struct Part {
        enum Kind: Equatable {
            case descriptor(String)
            /// 32-bit entries: relative to the table on x64, addresses on x86.
            case table
            case arguments
        }

        var kind: Kind
        var address: GuestVirtualAddress
        var original: [UInt8]
        /// What was last said of it.
        var reported: [UInt8]
    }

    private let table: ServiceTable
    private let architecture: KernelArchitecture
    private var parts: [Part] = []
    private var dispatcher: [WatchedPage] = []
    private var next = 0
    /// The second entry of KeServiceDescriptorTableShadow while it is empty: the graphical subsystem fills it.
    private var emptyEntry: GuestVirtualAddress?

    init(_ kernel: WindowsKernel, patches: [CodePatch.Place]) throws(ProtectionError) {
        architecture = kernel.architecture
        do throws(DiscoveryError) {
            table = try ServiceTable(of: kernel)
        } catch {
            throw .discovery(.serviceTables, error)
        }
        let reader = PageReader(kernel.memory, patches: patches)
        do throws(MemoryError) {
            try add(.descriptor("KeServiceDescriptorTable"), table.descriptor, descriptorSize, reader)
            try add(.table, table.base, Int(min(table.limit, ServiceTable.plausibleLimits.upperBound)) * 4, reader)
            // Number: one byte of arguments for each service, in kernels that have such a table.
            if let arguments = try? kernel.memory.pointer(at: table.descriptor + architecture.layout.serviceArguments),
                kernel.image.contains(arguments),
                kernel.image.contains(arguments + UInt64(table.limit))
            {
                try add(.arguments, arguments, Int(table.limit), reader)
            }
            if let shadow = table.shadowDescriptor {
                try add(.descriptor("KeServiceDescriptorTableShadow"), shadow, descriptorSize, reader)
                try addSecondEntry(shadow + UInt64(descriptorSize), reader)
            }
            for page in table.dispatcherPages {
                var watched = WatchedPage(page, isPinned: true)
                watched.baseline = try reader.baseline(of: page)
                dispatcher.append(watched)
            }
        } catch {
            throw .memory(error)
        }
    }

    private func add(
        _ kind: Part.Kind, _ address: GuestVirtualAddress, _ count: Int, _ reader: PageReader
    ) throws(MemoryError) {
        guard let bytes = try reader.stableBytes(at: address, count: count) else { return }
        parts.append(Part(kind: kind, address: address, original: bytes, reported: bytes))
    }

    private func addSecondEntry(_ address: GuestVirtualAddress, _ reader: PageReader) throws(MemoryError) {
        emptyEntry = nil
        guard let bytes = try reader.stableBytes(at: address, count: descriptorSize) else { return }
        guard bytes.contains(where: { $0 != 0 }) else {
            emptyEntry = address
            return
        }
        try add(
            .descriptor("KeServiceDescriptorTableShadow"), address, descriptorSize, reader)
    }

    /// What is compared here more closely than as constants of an image.
    var ranges: [Range<UInt64>] {
        parts.filter { $0.kind == .table || $0.kind == .arguments }.compactMap { part in
            let (end, overflow) = part.address.rawValue.addingReportingOverflow(UInt64(part.original.count))
            return overflow ? nil : part.address.rawValue..<end
        }
    }

    /// The pages of all tables and of the dispatcher.
    var addresses: [GuestVirtualAddress] {
        dispatcher.map(\.address) + parts.flatMap { PageReader.pages(of: $0.address, count: $0.original.count) }
    }

    func startOver() { next = 0 }

    /// Checks parts from where the last slice ended.
    /// - Parameter withCode: the dispatcher's code, too; where all of the kernel's code is checked it is part of that.
    /// - Returns: whether the round is complete.
    func check(
        _ reader: PageReader, withCode: Bool, budget: inout Int, into found: inout [Violation]
    ) throws(MemoryError) -> Bool {
        let count = parts.count + (withCode ? dispatcher.count : 0)
        while next < count {
            guard budget > 0 else { return false }
            let index = next
            next += 1
            if index < parts.count {
                budget -= parts[index].original.count
                try check(part: index, reader, into: &found)
            } else {
                budget -= PageReader.pageSize
                try check(code: index - parts.count, reader, into: &found)
            }
        }
        next = 0
        if let emptyEntry { try addSecondEntry(emptyEntry, reader) }
        return true
    }

    /// Checks what lies in one page.
    func check(
        page: GuestVirtualAddress, _ reader: PageReader, withCode: Bool, into found: inout [Violation]
    ) throws(MemoryError) {
        for index in parts.indices
        where PageReader.pages(of: parts[index].address, count: parts[index].original.count).contains(page.page) {
            try check(part: index, reader, into: &found)
        }
        if withCode, let index = dispatcher.firstIndex(where: { $0.address == page.page }) {
            try check(code: index, reader, into: &found)
        }
    }

    private func check(code index: Int, _ reader: PageReader, into found: inout [Violation]) throws(MemoryError) {
        found += try dispatcher[index].check(reader, .serviceTables, owner: "the system-call entry code")
    }

    private func check(part index: Int, _ reader: PageReader, into found: inout [Violation]) throws(MemoryError) {
        let part = parts[index]
        guard var now = try reader.bytes(at: part.address, count: part.original.count) else { return }
        if now != part.original, now != part.reported {
            guard let again = try reader.stableBytes(at: part.address, count: part.original.count) else { return }
            now = again
        }
        if now != part.reported { found += differences(of: now, part) }
        parts[index].reported = now
    }

    private func differences(of now: [UInt8], _ part: Part) -> [Violation] {
        var found: [Violation] = []
        func add(_ what: String, _ offset: Int) {
            found.append(
                Violation(protection: .serviceTables, what: what, address: part.address + UInt64(offset)))
        }
        let size = part.kind == .table ? 4 : part.original.count
        for offset in stride(from: 0, to: part.original.count, by: size) {
            let range = offset..<offset + size
            guard now[range] != part.original[range], now[range] != part.reported[range] else { continue }
            let changed = range.filter { now[$0] != part.original[$0] }
            switch part.kind {
            case .table:
                let old = target(part.original[range], part.address)
                let new = target(now[range], part.address)
                let number = String(offset / 4, radix: 16)
                add(
                    old == new
                        ? "the entry of service 0x\(number) changed"
                        : "service 0x\(number) leads to \(new) instead of \(old)", offset)
            case .descriptor(let name):
                add("\(countOfBytes(changed.count)) of \(name) changed", changed.first ?? offset)
            case .arguments:
                add("\(countOfBytes(changed.count)) of the service argument table changed", changed.first ?? offset)
            }
        }
        return found
    }

    /// Where an entry of the table leads.
    private func target(_ entry: ArraySlice<UInt8>, _ base: GuestVirtualAddress) -> GuestVirtualAddress {
        table.encoding.function(entry.reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }, base: base)
    }
}
