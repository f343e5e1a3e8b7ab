import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// The interrupt tables of all vCPUs.
final class InterruptTables {
    static let gateCount = 256
    /// Looks at a difference that is another one each time, before the last is believed.
    static let attempts = 4

    /// One vCPU's table.
    fileprivate struct Table: Equatable {
        var base: GuestVirtualAddress
        var limit: UInt32
        /// In bytes: 16 in long mode, else 8. Intel SDM volume 3, 6.11 and 6.14.1.
        var gateSize: Int
        /// nil where the table's page cannot be read now.
        var gates: [UInt8]?
    }

    private let kernel: WindowsKernel
    private var originals: [Int: Table] = [:]
    /// What was last said of a vCPU's table, so that it is not said again.
    private var reported: [Int: Table] = [:]

    init(_ kernel: WindowsKernel, _ machine: any VirtualMachine, patches: [CodePatch.Place]) throws(ProtectionError) {
        self.kernel = kernel
        let reader = PageReader(kernel.memory, patches: patches)
        for (vcpu, table) in try tables(machine, reader) where table.gates != nil { originals[vcpu] = table }
    }

    /// The pages that the tables lie in.
    var addresses: [GuestVirtualAddress] {
        originals.values.flatMap { PageReader.pages(of: $0.base, count: $0.gates?.count ?? 0) }
    }

    /// Checks all vCPUs: the machine answers for all at once.
    func check(
        _ machine: any VirtualMachine, _ reader: PageReader, budget: inout Int, into found: inout [Violation]
    ) throws(ProtectionError) {
        var current = try tables(machine, reader)
        budget -= current.values.reduce(0) { $0 + ($1.gates?.count ?? 0) }
        for _ in 1..<Self.attempts where isSuspicious(current) {
            let again = try tables(machine, reader)
            if again == current { break }
            current = again
        }
        for (vcpu, table) in current.sorted(by: { $0.key < $1.key }) {
            guard let original = originals[vcpu] else {
                // A vCPU that has come up since.
                if table.gates != nil { originals[vcpu] = table }
                continue
            }
            found += differences(of: table, from: original, said: reported[vcpu] ?? original, vcpu: vcpu)
            reported[vcpu] = table == original ? nil : table.keeping(reported[vcpu] ?? original)
        }
    }

    private func isSuspicious(_ tables: [Int: Table]) -> Bool {
        tables.contains { vcpu, table in
            guard let original = originals[vcpu] else { return false }
            return table != (reported[vcpu] ?? original) && table != original
        }
    }

    /// The tables of those vCPUs that run the kernel's system: others are still, or again, in firmware's hands.
    private func tables(
        _ machine: any VirtualMachine, _ reader: PageReader
    ) throws(ProtectionError) -> [Int: Table] {
        let all: [ProcessorTables]
        do throws(HypervisorError) {
            all = try machine.processorTables()
        } catch {
            throw .hypervisor(error)
        }
        var found: [Int: Table] = [:]
        let is64Bit = kernel.architecture == .x64
        let gateSize = is64Bit ? 16 : 8
        for (vcpu, entry) in all.enumerated()
        where entry.control.pagingEnabled && entry.control.longModeActive == is64Bit {
            // A boot loader of 32 bits has none of its own in the kernel's half.
            guard kernel.memory.pagingMode.isInKernelHalf(entry.idtBase) else { continue }
            let size = min(Int(entry.idtLimit) + 1, Self.gateCount * gateSize)
            do throws(MemoryError) {
                let gates = try reader.stableBytes(at: entry.idtBase, count: size)
                found[vcpu] = Table(
                    base: entry.idtBase, limit: entry.idtLimit, gateSize: gateSize, gates: gates)
            } catch {
                throw .memory(error)
            }
        }
        return found
    }

    private func differences(
        of table: Table, from original: Table, said: Table, vcpu: Int
    ) -> [Violation] {
        var found: [Violation] = []
        func add(_ what: String, _ address: GuestVirtualAddress) {
            found.append(Violation(protection: .interruptTables, what: what, address: address))
        }
        if table.base != original.base, table.base != said.base {
            add("the interrupt table of vCPU \(vcpu) is at \(table.base) instead of \(original.base)", table.base)
        }
        if table.limit != original.limit, table.limit != said.limit {
            add(
                "the interrupt table of vCPU \(vcpu) has the limit 0x\(String(table.limit, radix: 16)) instead of "
                    + "0x\(String(original.limit, radix: 16))", table.base)
        }
        for vector in 0..<Self.gateCount {
            guard let now = table.gate(vector), let before = original.gate(vector), now != before,
                now != said.gate(vector)
            else { continue }
            add(
                "gate 0x\(String(vector, radix: 16)) of vCPU \(vcpu) \(Self.change(from: before, to: now))",
                table.base + UInt64(vector * table.gateSize))
        }
        return found
    }

    private static func change(from before: ArraySlice<UInt8>, to now: ArraySlice<UInt8>) -> String {
        guard let old = InterruptGate(before), let new = InterruptGate(now), old.handler != new.handler else {
            return "changed"
        }
        return "leads to \(new.handler) instead of \(old.handler)"
    }
}

extension InterruptTables.Table {
    /// The bytes of a vector's gate, where the table has them.
    func gate(_ vector: Int) -> ArraySlice<UInt8>? {
        guard let gates, (vector + 1) * gateSize <= gates.count else { return nil }
        return gates[vector * gateSize..<(vector + 1) * gateSize]
    }

    /// What is known: where the gates cannot be read now, those that were read last.
    func keeping(_ last: Self) -> Self {
        var kept = self
        if kept.gates == nil { kept.gates = last.gates }
        return kept
    }
}

extension InterruptGate {
    /// A gate from its 16 or 8 bytes.
    fileprivate init?(_ bytes: ArraySlice<UInt8>) {
        func word(_ part: ArraySlice<UInt8>) -> UInt64 { part.reversed().reduce(0) { $0 << 8 | UInt64($1) } }
        if bytes.count == 8 {
            self.init(protectedMode: word(bytes))
        } else {
            self.init(low: word(bytes.prefix(8)), high: word(bytes.dropFirst(8).prefix(8)))
        }
    }
}
