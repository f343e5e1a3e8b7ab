import GuestMemory
import X86

/// Finds the system-service table.
///
/// x86 kernels export its descriptor. On x64 an exported Zw stub leads to the dispatcher, which loads it; where it
/// does not, the kernel's code is searched for the dispatcher's instructions, and then its data for the table itself
/// (`ServiceTableShape`). However it was found, exported services have to be where it says.
struct ServiceTableFinder {
    /// Exported in all kernels, and small: their stubs are tried in this order.
    static let stubNames = ["ZwClose", "ZwQuerySystemInformation", "ZwCreateFile", "ZwOpenProcess", "ZwSetEvent"]
    static let descriptorName = "KeServiceDescriptorTable"
    /// Names that are compared; a forged export directory must not make this long.
    static let maximumPairs = 512

    let kernel: WindowsKernel
    let reader: CodeReader
    private let encoding: ServiceTable.Encoding
    private let allServices: [ServiceTableShape.Service]

    init(_ kernel: WindowsKernel) {
        self.kernel = kernel
        reader = CodeReader(kernel.memory)
        encoding = .init(architecture: kernel.architecture, build: kernel.build)
        allServices = Self.exportedServices(kernel, reader)
    }

    func find() throws(DiscoveryError) -> ServiceTable {
        var failure: DiscoveryError?
        let entry = serviceEntry(failure: &failure)
        var dispatcher: SystemCallDispatcher?
        if let entry {
            do throws(DiscoveryError) {
                dispatcher = try SystemCallDispatcher.follow(from: entry, of: kernel, reader: reader)
            } catch {
                failure = failure ?? error
            }
        }
        if let exported = try? kernel.export(Self.descriptorName) {
            if let loaded = dispatcher?.descriptor, loaded != exported {
                throw .disagreement(Self.descriptorName, first: exported, second: loaded)
            }
            return try check(exported, dispatcher, shadow: dispatcher?.shadow, entry, .export)
        }
        if let dispatcher, let descriptor = dispatcher.descriptor {
            return try check(descriptor, dispatcher, shadow: dispatcher.shadow, entry, .stub)
        }
        var scanned: SystemCallDispatcher?
        do throws(DiscoveryError) {
            scanned = try SystemCallDispatcher.scan(kernel)
        } catch {
            // Code that is not resident keeps the table from being found by it, not by what it holds.
            guard error.canBeRetried else { throw error }
            failure = error
        }
        if let scanned, let descriptor = scanned.descriptor {
            do throws(DiscoveryError) {
                let table = try check(descriptor, scanned, shadow: scanned.shadow, entry, .scan)
                try confirmByShape(table)
                return table
            } catch {
                // Code that only looks like it.
                guard case .malformed = error else { throw error }
                failure = error
            }
        }
        do throws(DiscoveryError) {
            let found = try shape(entry).find()
            return try check(found.descriptor, dispatcher, shadow: found.shadow, entry, .shape)
        } catch {
            if case .ambiguous = error { throw error }
            throw error.canBeRetried ? error : failure ?? error
        }
    }

    private func shape(_ entry: GuestVirtualAddress?) -> ServiceTableShape {
        ServiceTableShape(kernel: kernel, encoding: encoding, services: services(entry: entry))
    }

    /// Code that was met by searching leads nowhere from the kernel's entry: no other table may hold the services.
    private func confirmByShape(_ table: ServiceTable) throws(DiscoveryError) {
        do throws(DiscoveryError) {
            let descriptor = try shape(table.serviceEntry).find().descriptor
            let base = try reading("the service descriptor at \(descriptor)") { () throws(MemoryError) in
                try kernel.memory.pointer(at: descriptor)
            }
            guard base == table.base else {
                throw .disagreement("the system-service table", first: table.base, second: base)
            }
        } catch {
            if case .notFound = error { return }
            throw error
        }
    }

    /// Where the kernel's stubs lead: nearly all that are exported go to one place. One that goes elsewhere is hooked.
    private func serviceEntry(failure: inout DiscoveryError?) -> GuestVirtualAddress? {
        var counts: [GuestVirtualAddress: Int] = [:]
        for service in allServices { counts[service.entry, default: 0] += 1 }
        let most = counts.values.max() ?? 0
        let leaders = counts.filter { $0.value == most }.map(\.key)
        if leaders.count == 1, let entry = leaders.first { return entry }
        for name in Self.stubNames {
            do throws(DiscoveryError) {
                let address = try kernel.export(name)
                let stub = try reading(name) { () throws(MemoryError) in
                    try SystemCallStub.kernel(at: address, reader: reader)
                }
                if let stub, kernel.image.isExecutable(stub.serviceEntry) { return stub.serviceEntry }
                failure = failure ?? .unexpectedCode(function: name, at: address, "it is no system-service stub")
            } catch {
                failure = failure ?? error
            }
        }
        return nil
    }

    /// A descriptor is believed if its table lies in the kernel and exported services lead where they must.
    private func check(
        _ descriptor: GuestVirtualAddress, _ dispatcher: SystemCallDispatcher?, shadow: GuestVirtualAddress?,
        _ entry: GuestVirtualAddress?, _ source: ServiceTable.Source
    ) throws(DiscoveryError) -> ServiceTable {
        let layout = kernel.architecture.layout
        let (base, limit) = try reading("the service descriptor at \(descriptor)") { () throws(MemoryError) in
            (
                try kernel.memory.pointer(at: descriptor),
                try kernel.memory.load(UInt32.self, at: descriptor + layout.serviceLimit)
            )
        }
        guard base.rawValue & 3 == 0, ServiceTable.plausibleLimits.contains(limit),
            kernel.image.contains(base), kernel.image.contains(base + UInt64(limit) * 4 - 1)
        else {
            throw base.rawValue == 0
                ? .stillBooting("the system-service table is not set up yet")
                : .malformed("a service table at \(base) with \(limit) entries", at: descriptor)
        }
        try checkArguments(of: descriptor, limit: limit)
        var table = ServiceTable(
            descriptor: descriptor, base: base, encoding: encoding, limit: limit, dispatcher: dispatcher?.address,
            serviceEntry: entry,
            shadowDescriptor: shadow.flatMap { kernel.image.contains($0) ? $0 : nil },
            dispatcherPages: dispatcher?.pages.sorted() ?? [], source: source, confirmations: [], contradictions: [])
        let missing = compare(&table)
        if table.confirmations.isEmpty, let missing { throw missing }
        guard !table.confirmations.isEmpty, table.contradictions.count < table.confirmations.count else {
            throw .malformed(
                "no exported system service is where the table says (\(table.contradictions.count) contradict)",
                at: base)
        }
        return table
    }

    /// x86 kernels have a byte for each service that says how many bytes of arguments it has, all of whole words.
    private func checkArguments(of descriptor: GuestVirtualAddress, limit: UInt32) throws(DiscoveryError) {
        guard kernel.architecture == .x86,
            let arguments = try? kernel.memory.pointer(at: descriptor + kernel.architecture.layout.serviceArguments),
            arguments.rawValue != 0, let bytes = try? kernel.memory.bytes(at: arguments, count: UInt64(limit))
        else { return }
        guard kernel.image.contains(arguments), bytes.allSatisfy({ $0 & 3 == 0 }) else {
            throw .malformed("a service table whose arguments are no whole words", at: descriptor)
        }
    }

    /// The services exported both as Zw and Nt, with the number in the stub and where that leads.
    private static func exportedServices(_ kernel: WindowsKernel, _ reader: CodeReader) -> [ServiceTableShape.Service] {
        let names = kernel.exports.exports.keys.filter { $0.hasPrefix("Zw") }.sorted().prefix(maximumPairs)
        var found: [ServiceTableShape.Service] = []
        for name in names {
            let service = "Nt" + name.dropFirst(2)
            guard let stubAddress = try? kernel.export(name), let function = try? kernel.export(service),
                let stub = try? SystemCallStub.kernel(at: stubAddress, reader: reader),
                kernel.image.isExecutable(stub.serviceEntry)
            else { continue }
            found.append(.init(name: service, number: stub.number, entry: stub.serviceEntry, function: function))
        }
        return found
    }

    private func services(entry: GuestVirtualAddress?) -> [ServiceTableShape.Service] {
        allServices.filter { entry == nil || $0.entry == entry }
    }

    /// Each stub's number must lead to the exported function.
    /// - Returns: why an entry is not known yet, where one is not.
    private func compare(_ table: inout ServiceTable) -> DiscoveryError? {
        var missing: DiscoveryError?
        for service in services(entry: table.serviceEntry) {
            do throws(DiscoveryError) {
                if try table.function(service.number, in: kernel) == service.function {
                    table.confirmations.append(service.name)
                } else {
                    table.contradictions.append(service.name)
                }
            } catch {
                if error.canBeRetried { missing = missing ?? error }
            }
        }
        return missing
    }
}

extension ServiceTable {
    /// Finds and checks the kernel's table.
    /// - Throws: `notYet` where code or table are not resident; `ambiguous`; `malformed`; `unexpectedCode`.
    public init(of kernel: WindowsKernel) throws(DiscoveryError) {
        self = try ServiceTableFinder(kernel).find()
    }

    /// The kernel's own Zw stub with this number, exported or not, where its page is resident.
    ///
    /// It confirms a number that was read elsewhere; without a name it is no way of its own.
    /// - Returns: all places with the stub's shape, its number, and a jump to the known service entry.
    public func kernelStubs(number: UInt32, in kernel: WindowsKernel) throws(DiscoveryError) -> [GuestVirtualAddress] {
        guard let serviceEntry else { return [] }
        let reader = CodeReader(kernel.memory)
        let any = BytePattern.wildcard
        let bytes = (0..<4).map { UInt16(truncatingIfNeeded: number >> (8 * $0)) & 0xff }
        let (rest, distances) = Self.stubShape(of: kernel.architecture, any)
        guard let pattern = try? BytePattern([0xb8] + bytes + rest) else { return [] }
        var found: Set<GuestVirtualAddress> = []
        for section in kernel.image.sections where section.isExecutable && !section.isDiscardable {
            let code = try kernel.code(of: section)
            for offset in pattern.matches(in: code) {
                let places = distances.lazy.filter { $0 <= offset }.map { code.address + UInt64(offset - $0) }
                let start = places.first { start in
                    let stub = try? SystemCallStub.kernel(at: start, reader: reader)
                    return stub?.number == number && stub?.serviceEntry == serviceEntry
                }
                if let start { found.insert(start) }
            }
        }
        return found.sorted()
    }

    /// What follows `mov eax, NUMBER` in a Zw stub, and how far before it the stub may start, in bytes.
    private static func stubShape(of architecture: KernelArchitecture, _ any: UInt16) -> ([UInt16], [Int]) {
        switch architecture {
        // mov rax, rsp; cli; sub rsp, 16; push rax; pushfq; push 16; lea rax, [..]; push rax: 20 bytes; or the same
        // behind an ENDBR64.
        case .x64: ([0xe9, any, any, any, any], [24, 20])
        // lea edx, [esp+4]; pushfd; push 8; call.
        case .x86: ([0x8d, 0x54, 0x24, 0x04, 0x9c, 0x6a, 0x08, 0xe8], [4, 0])
        }
    }
}
