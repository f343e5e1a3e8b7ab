import GuestMemory

/// Finds the system-service table by what it must hold, whatever code leads to it.
///
/// A kernel exports some services both as Nt, the function, and as Zw, the stub with the number. Wherever the image
/// has one of these functions as a table's entry, the table's start follows, and the other services tell whether it
/// is one. A descriptor elsewhere in the image has to point there and give a plausible number of services. No order
/// of sections, no names and no code of the dispatcher matter.
struct ServiceTableShape {
    /// A service that is known by both of its exports.
    struct Service {
        var name: String
        var number: UInt32
        /// Where its stub leads.
        var entry: GuestVirtualAddress
        var function: GuestVirtualAddress
    }

    /// Fewer say nothing: a pointer to one function is anywhere.
    static let minimumServices = 2
    /// Services that tables are looked for by: each may be changed in one.
    static let maximumAnchors = 4

    let kernel: WindowsKernel
    let encoding: ServiceTable.Encoding
    let services: [Service]

    struct Found {
        var descriptor: GuestVirtualAddress
        /// A second descriptor of the same table, KeServiceDescriptorTableShadow.
        var shadow: GuestVirtualAddress?
    }

    /// The table's descriptor.
    /// - Throws: `ambiguous` where several tables hold the services and have descriptors; `notYet` where what is not
    ///   resident could hold another one; `notFound`.
    func find() throws(DiscoveryError) -> Found {
        guard services.count >= Self.minimumServices else {
            throw .notFound("a system-service table by its entries (too few services are exported to know it by)")
        }
        var gap: MemoryError?
        var dataGap: MemoryError?
        let parts = try readImage(gap: &gap, dataGap: &dataGap)
        var bases: Set<GuestVirtualAddress> = []
        for anchor in services.prefix(Self.maximumAnchors) {
            for part in parts { bases.formUnion(tables(in: part, holding: anchor)) }
        }
        var found: [GuestVirtualAddress: [GuestVirtualAddress]] = [:]
        for part in parts {
            for (descriptor, base) in descriptors(in: part, of: bases, absent: &dataGap) {
                found[base, default: []].append(descriptor)
            }
        }
        guard let only = found.first else {
            if let gap { throw DiscoveryError(gap, reading: "a part of the kernel where the service table may be") }
            throw .notFound("a system-service table by its entries")
        }
        guard found.count == 1 else {
            throw .ambiguous("the system-service table", candidates: found.keys.sorted())
        }
        // One more descriptor, or one more table, may be in a page that is not resident.
        if let dataGap { throw DiscoveryError(dataGap, reading: "data of the kernel where a service table may be") }
        // The plain table's second descriptor is empty, the shadow's is the graphical subsystem's.
        let size = kernel.architecture.layout.serviceDescriptorSize
        let all = only.value.sorted()
        let plain = all.filter { (try? kernel.memory.word(at: $0 + size)) == 0 }
        let first = plain.first ?? all[0]
        return Found(descriptor: first, shadow: all.count == 2 ? all.first { $0 != first } : nil)
    }

    /// All of the image that is not thrown away after the start.
    /// - Parameters:
    ///   - gap: why the first absent page is absent.
    ///   - dataGap: the same of the first page that could hold a descriptor: writable, and not of a pageable section
    ///     (`PAGE*`), where no kernel has one.
    private func readImage(
        gap: inout MemoryError?, dataGap: inout MemoryError?
    ) throws(DiscoveryError) -> [PartialBytes] {
        var parts: [PartialBytes] = []
        var end: UInt32 = 0
        for section in kernel.image.sections.sorted(by: { $0.rva < $1.rva }) where !section.isDiscardable {
            // Sections that overlap are read once.
            let start = max(section.rva, end) & ~3
            let (sectionEnd, overflow) = section.rva.addingReportingOverflow(section.virtualSize)
            guard !overflow, sectionEnd > start else { continue }
            end = sectionEnd
            let address = kernel.image.address(rva: start)
            let part = try reading("section \(section.name)") { () throws(MemoryError) in
                try kernel.memory.readPartial(
                    at: address, count: UInt64(sectionEnd - start), maximum: UInt64(PEImage.maximumSize))
            }
            gap = gap ?? part.gaps.first?.error
            if section.isWritable, !section.name.hasPrefix("PAGE") { dataGap = dataGap ?? part.gaps.first?.error }
            parts.append(part)
        }
        return parts
    }

    /// Where tables start that hold an anchor's function at its number, and the other services where they belong.
    private func tables(in part: PartialBytes, holding anchor: Service) -> [GuestVirtualAddress] {
        var found: [GuestVirtualAddress] = []
        let distance = UInt64(anchor.number) * 4
        part.bytes.withUnsafeBytes { bytes in
            var offset = 0
            while offset + 4 <= bytes.count {
                let base = part.address + UInt64(offset) - distance
                let entry = UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
                if encoding.function(entry, base: base) == anchor.function, kernel.image.contains(base), agrees(base) {
                    found.append(base)
                }
                offset += 4
            }
        }
        return found
    }

    /// More services are where they belong than are not. One may have been changed by a rootkit or a debugger.
    private func agrees(_ base: GuestVirtualAddress) -> Bool {
        var right = 0
        for service in services {
            guard let entry = try? kernel.memory.load(UInt32.self, at: base + UInt64(service.number) * 4) else {
                continue
            }
            if encoding.function(entry, base: base) == service.function { right += 1 }
        }
        return right >= Self.minimumServices && right * 2 > services.count
    }

    private func firstAbsence(at base: GuestVirtualAddress, count: UInt64) -> MemoryError? {
        (try? kernel.memory.readPartial(at: base, count: count, maximum: 1 << 16))?.gaps.first?.error
    }

    /// - Parameter absent: set where a descriptor leads to a table of which a part is not resident.
    private func descriptors(
        in part: PartialBytes, of bases: Set<GuestVirtualAddress>, absent: inout MemoryError?
    ) -> [(descriptor: GuestVirtualAddress, base: GuestVirtualAddress)] {
        let layout = kernel.architecture.layout
        var found: [(descriptor: GuestVirtualAddress, base: GuestVirtualAddress)] = []
        let width = Int(layout.pointerSize)
        var offset = (width - Int(part.address.rawValue & UInt64(width - 1))) & (width - 1)
        while !bases.isEmpty, offset + Int(layout.serviceDescriptorSize) <= part.bytes.count {
            defer { offset += width }
            let word =
                width == 8 ? part.load(UInt64.self, at: offset) : part.load(UInt32.self, at: offset).map(UInt64.init)
            guard let word, kernel.image.contains(GuestVirtualAddress(word)), word & 3 == 0,
                let limit = part.load(UInt32.self, at: offset + Int(layout.serviceLimit)),
                ServiceTable.plausibleLimits.contains(limit),
                // The counters of a checked build only.
                (try? kernel.memory.word(at: part.address + UInt64(offset + width))) == 0
            else { continue }
            let base = GuestVirtualAddress(word)
            if bases.contains(base) {
                found.append((part.address + UInt64(offset), base))
            } else {
                absent = absent ?? firstAbsence(at: base, count: UInt64(limit) * 4)
            }
        }
        return found
    }
}
