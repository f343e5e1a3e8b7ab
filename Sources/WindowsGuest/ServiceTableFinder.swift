import GuestMemory
import X86

/// Finds the system-service table, which is not exported on x64.
///
/// The dispatcher (KiSystemServiceRepeat) loads both descriptor tables one after the other:
/// `4C 8D 15 rel32` lea r10, [KeServiceDescriptorTable]; `4C 8D 1D rel32` lea r11, [KeServiceDescriptorTableShadow].
/// An exported Zw stub leads there; where it does not, the kernel's code is searched for that pair.
struct ServiceTableFinder {
    /// Exported in all kernels since Windows 7, and small: their stubs are tried in this order.
    static let stubNames = ["ZwClose", "ZwQuerySystemInformation", "ZwCreateFile", "ZwOpenProcess", "ZwSetEvent"]
    /// From a stub to the pair there are about forty instructions.
    static let maximumInstructions = 256
    /// Names that are compared; a forged export directory must not make this long.
    static let maximumPairs = 512

    /// Where the dispatcher loads the tables, and what it loads.
    private struct Dispatcher {
        var descriptor: GuestVirtualAddress
        var shadow: GuestVirtualAddress
        /// The first of the two instructions that load them.
        var address: GuestVirtualAddress
        /// The pages of the code that was looked at.
        var pages: Set<GuestVirtualAddress>
    }

    let kernel: WindowsKernel
    let reader: CodeReader

    init(_ kernel: WindowsKernel) {
        self.kernel = kernel
        reader = CodeReader(kernel.memory)
    }

    func find() throws(DiscoveryError) -> ServiceTable {
        var failure: DiscoveryError?
        let stub = exportedStub(failure: &failure)
        var dispatcher: Dispatcher?
        var source = ServiceTable.Source.stub
        if let stub {
            do throws(DiscoveryError) {
                dispatcher = try follow(from: stub.serviceEntry)
            } catch {
                failure = failure ?? error
            }
        }
        if dispatcher == nil {
            source = .scan
            dispatcher = try scan(after: failure)
        }
        guard let dispatcher else { throw failure ?? .notFound("the system-service table") }
        return try check(dispatcher, serviceEntry: stub?.serviceEntry, source: source)
    }

    private func exportedStub(failure: inout DiscoveryError?) -> SystemCallStub.Kernel? {
        for name in Self.stubNames {
            do throws(DiscoveryError) {
                let address = try kernel.export(name)
                let stub = try reading(name) { () throws(MemoryError) in
                    try SystemCallStub.kernel(at: address, reader: reader)
                }
                if let stub, kernel.image.isExecutable(stub.serviceEntry) { return stub }
                failure = failure ?? .unexpectedCode(function: name, at: address, "it is no system-service stub")
            } catch {
                failure = failure ?? error
            }
        }
        return nil
    }

    /// Follows the dispatcher's straight path until it loads the two descriptor tables.
    private func follow(from start: GuestVirtualAddress) throws(DiscoveryError) -> Dispatcher? {
        var address = start
        var pages: Set<GuestVirtualAddress> = []
        var r10: (table: UInt64, at: GuestVirtualAddress)?
        var r11: UInt64?
        for _ in 0..<Self.maximumInstructions {
            let next = address
            guard kernel.image.isExecutable(next) else { return nil }
            let decoded = try reading("the system-call dispatcher at \(next)") { () throws(MemoryError) in
                try reader.instruction(at: next)
            }
            guard let instruction = decoded else { return nil }
            pages.formUnion([next.page, GuestVirtualAddress(instruction.nextAddress &- 1).page])
            let loaded = instruction.mnemonic == .lea ? instruction.operands[1].memory?.absoluteAddress : nil
            if let loaded, instruction.destination == .r11 {
                // The two tables are loaded one right after the other.
                if let r10 {
                    return Dispatcher(
                        descriptor: GuestVirtualAddress(r10.table), shadow: GuestVirtualAddress(loaded),
                        address: r10.at, pages: pages)
                }
                r11 = loaded
            }
            r10 = instruction.destination == .r10 ? loaded.map { ($0, next) } : nil
            if instruction.isUnconditionalJump {
                if let target = instruction.relativeTarget {
                    address = GuestVirtualAddress(target)
                } else if instruction.operands[0].register == .r11, let r11 {
                    address = GuestVirtualAddress(r11)
                } else {
                    return nil
                }
                continue
            }
            guard instruction.fallsThrough else { return nil }
            address = GuestVirtualAddress(instruction.nextAddress)
        }
        return nil
    }

    /// Searches all code for the pair and the TEST (F7) that follows it.
    private func scan(after failure: DiscoveryError?) throws(DiscoveryError) -> Dispatcher? {
        let any = BytePattern.wildcard
        let elements: [UInt16] = [
            0x4c, 0x8d, 0x15, any, any, any, any, 0x4c, 0x8d, 0x1d, any, any, any, any, 0xf7,
        ]
        guard let pattern = try? BytePattern(elements) else { return nil }
        var found: [Dispatcher] = []
        var gap: MemoryError?
        for section in kernel.image.sections where section.isExecutable && !section.isDiscardable {
            let code = try kernel.code(of: section)
            gap = gap ?? code.gaps.first?.error
            for offset in pattern.matches(in: code) {
                guard let first = code.load(Int32.self, at: offset + 3),
                    let second = code.load(Int32.self, at: offset + 10)
                else { continue }
                let place = code.address + UInt64(offset)
                let target = place + 7 + UInt64(bitPattern: Int64(first))
                guard kernel.image.contains(target) else { continue }
                let pages = [place.page, (place + 13).page]
                if let known = found.firstIndex(where: { $0.descriptor == target }) {
                    found[known].pages.formUnion(pages)
                } else {
                    let shadow = place + 14 + UInt64(bitPattern: Int64(second))
                    found.append(
                        Dispatcher(descriptor: target, shadow: shadow, address: place, pages: Set(pages)))
                }
            }
        }
        if found.count > 1 {
            throw .ambiguous("the system-service descriptor table", candidates: found.map(\.descriptor))
        }
        if found.isEmpty, let gap { throw DiscoveryError(gap, reading: "the system-call dispatcher") }
        if found.isEmpty, let failure { throw failure }
        return found.first
    }

    /// A descriptor is believed if its table lies in the kernel and exported services lead where they must.
    private func check(
        _ dispatcher: Dispatcher, serviceEntry: GuestVirtualAddress?, source: ServiceTable.Source
    ) throws(DiscoveryError) -> ServiceTable {
        let descriptor = dispatcher.descriptor
        // KSERVICE_TABLE_DESCRIPTOR: Base, Count, Limit, Number.
        let (base, limit) = try reading("the service descriptor at \(descriptor)") { () throws(MemoryError) in
            (try kernel.memory.pointer(at: descriptor), try kernel.memory.load(UInt32.self, at: descriptor + 16))
        }
        guard base.rawValue & 3 == 0, ServiceTable.plausibleLimits.contains(limit),
            kernel.image.contains(base), kernel.image.contains(base + UInt64(limit) * 4 - 1)
        else {
            throw base.rawValue == 0
                ? .stillBooting("the system-service table is not set up yet")
                : .malformed("a service table at \(base) with \(limit) entries", at: descriptor)
        }
        var table = ServiceTable(
            descriptor: descriptor, base: base, limit: limit, dispatcher: dispatcher.address,
            serviceEntry: serviceEntry,
            shadowDescriptor: kernel.image.contains(dispatcher.shadow) ? dispatcher.shadow : nil,
            dispatcherPages: dispatcher.pages.sorted(), source: source, confirmations: [], contradictions: [])
        compare(&table)
        guard !table.confirmations.isEmpty, table.contradictions.count < table.confirmations.count else {
            throw .malformed(
                "no exported system service is where the table says (\(table.contradictions.count) contradict)",
                at: base)
        }
        return table
    }

    /// For each name exported both as Zw and Nt: the stub's number must lead to the function.
    private func compare(_ table: inout ServiceTable) {
        let names = kernel.exports.exports.keys.filter { $0.hasPrefix("Zw") }.sorted().prefix(Self.maximumPairs)
        for name in names {
            let service = "Nt" + name.dropFirst(2)
            guard let stubAddress = try? kernel.export(name), let function = try? kernel.export(service),
                let stub = try? SystemCallStub.kernel(at: stubAddress, reader: reader),
                table.serviceEntry == nil || stub.serviceEntry == table.serviceEntry,
                let listed = try? table.function(stub.number, in: kernel)
            else { continue }
            if listed == function {
                table.confirmations.append(service)
            } else {
                table.contradictions.append(service)
            }
        }
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
        guard let pattern = try? BytePattern([0xb8] + bytes + [0xe9, any, any, any, any]) else { return [] }
        // mov rax, rsp; cli; sub rsp, 16; push rax; pushfq; push 16; lea rax, [..]; push rax.
        let distance: UInt64 = 20
        var found: [GuestVirtualAddress] = []
        for section in kernel.image.sections where section.isExecutable && !section.isDiscardable {
            let code = try kernel.code(of: section)
            for offset in pattern.matches(in: code) where offset >= Int(distance) {
                let start = code.address + UInt64(offset) - distance
                if let stub = try? SystemCallStub.kernel(at: start, reader: reader), stub.number == number,
                    stub.serviceEntry == serviceEntry
                {
                    found.append(start)
                }
            }
        }
        return found
    }
}
