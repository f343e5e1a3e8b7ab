import GuestMemory
import HypervisorInterface
import X86

/// Reads what QEMU's human monitor prints. It has no machine-readable twin for these.
enum MonitorText {
    /// The vCPUs' translation and system tables, from `info registers -a`.
    static func processorTables(_ text: String) -> [ProcessorTables] { vcpus(text).compactMap(tables) }

    /// The vCPUs that wait in `hlt`, from `info registers -a`.
    static func haltedVCPUs(_ text: String) -> Set<VCPU> {
        let halted = vcpus(text).enumerated().filter { _, lines in
            lines.contains { $0.split(separator: " ").contains("HLT=1") }
        }
        return Set(halted.map { VCPU($0.offset) })
    }

    /// The lines of each vCPU's part, which begins with "CPU#N".
    private static func vcpus(_ text: String) -> [[Substring]] {
        var parts: [[Substring]] = []
        for line in text.split(whereSeparator: \.isNewline) {
            if line.hasPrefix("CPU#") {
                parts.append([])
            } else if !parts.isEmpty {
                parts[parts.count - 1].append(line)
            }
        }
        return parts
    }

    private static func tables(_ lines: [Substring]) -> ProcessorTables? {
        var words: [Substring: Substring] = [:]
        var descriptorTables: [Substring: [Substring]] = [:]
        for line in lines {
            if line.hasPrefix("GDT=") || line.hasPrefix("IDT=") {
                descriptorTables[line.prefix(3)] = line.dropFirst(4).split(separator: " ")
            } else {
                for word in line.split(separator: " ") {
                    let parts = word.split(separator: "=", maxSplits: 1)
                    if parts.count == 2 { words[parts[0]] = parts[1] }
                }
            }
        }
        func number(_ name: Substring) -> UInt64? { words[name].flatMap { UInt64($0, radix: 16) } }
        guard let cr0 = number("CR0"), let cr3 = number("CR3"), let cr4 = number("CR4"), let efer = number("EFER"),
            let idt = descriptorTables["IDT"], let gdt = descriptorTables["GDT"], idt.count == 2, gdt.count == 2,
            let idtBase = UInt64(idt[0], radix: 16), let idtLimit = UInt32(idt[1], radix: 16),
            let gdtBase = UInt64(gdt[0], radix: 16), let gdtLimit = UInt32(gdt[1], radix: 16)
        else { return nil }
        return ProcessorTables(
            control: ControlRegisters(cr0: cr0, cr3: cr3, cr4: cr4, efer: efer),
            idtBase: GuestVirtualAddress(idtBase), idtLimit: idtLimit,
            gdtBase: GuestVirtualAddress(gdtBase), gdtLimit: gdtLimit)
    }

    /// A range of the guest's physical address space.
    struct MemoryRange: Equatable {
        var base: UInt64
        var length: UInt64
        /// The memory region's name, without an offset.
        var name: String
    }

    /// The ranges that are RAM, from the flat view of address space `memory` in `info mtree -f`.
    /// RAM that a chipset shows read-only (the firmware's shadow) counts: it is read only here.
    static func ramRanges(_ text: String) -> [MemoryRange] {
        var ranges: [MemoryRange] = []
        var inMemoryView = false
        var seen = false
        for line in text.split(whereSeparator: \.isNewline) {
            let trimmed = line.drop { $0 == " " }
            if trimmed.hasPrefix("FlatView") {
                if seen { break }
                inMemoryView = false
            } else if trimmed.hasPrefix("AS \"memory\"") {
                inMemoryView = true
                seen = true
            } else if inMemoryView, let range = ramRange(trimmed) {
                ranges.append(range)
            }
        }
        return ranges
    }

    /// Parses `0000000000000000-00000000000bffff (prio 0, ram): pc.ram @0000…` where it is RAM.
    private static func ramRange(_ line: Substring) -> MemoryRange? {
        guard let open = line.firstIndex(of: "("), let close = line.firstIndex(of: ")"), open < close else {
            return nil
        }
        let bounds = line[..<open].split(separator: "-")
        guard bounds.count == 2, let first = UInt64(bounds[0], radix: 16),
            let last = UInt64(bounds[1].filter { $0 != " " }, radix: 16), last >= first, last < UInt64.max
        else { return nil }
        // Memory of a device (a graphics card's, in a PCI window) has a priority above the machine's RAM.
        let traits = line[line.index(after: open)..<close].split(separator: ",")
        guard traits.count == 2, traits[0] == "prio 0" else { return nil }
        let kind = traits[1].filter { $0 != " " }
        let words = line[line.index(after: close)...].dropFirst().split(separator: " ")
        guard let name = words.first,
            kind == "ram" || (kind == "rom" && !name.hasSuffix(".bios") && !name.hasSuffix(".rom"))
        else { return nil }
        return MemoryRange(base: first, length: last - first + 1, name: String(name))
    }

    /// Whether a memory region of this name answers at an I/O port, by the flat view of address space `I/O` in
    /// `info mtree -f`.
    static func isPort(_ name: String, inTree text: String) -> Bool {
        var isInView = false
        for line in text.split(whereSeparator: \.isNewline) {
            let words = line.split(separator: " ")
            if words.first == "FlatView" {
                isInView = false
            } else if words.starts(with: ["AS", "\"I/O\","]) {
                isInView = true
            } else if isInView, words.count >= 5, words[3] == "i/o):", words[4] == name {
                // `0000000000000604-0000000000000605 (prio 0, i/o): acpi-cnt`
                return true
            }
        }
        return false
    }

    /// Whether some device has a memory region of this name, mapped or not, by `info qom-tree`.
    static func isRegion(_ name: String, ofObjects text: String) -> Bool {
        text.split(whereSeparator: \.isNewline).contains { line in
            // `      /acpi-cnt[0] (memory-region)`
            let words = line.split(separator: " ")
            return words.count == 2 && words[0].hasPrefix("/\(name)[") && words[1] == "(memory-region)"
        }
    }

    /// The address from `gpa2hva`'s answer, or nil where it says that there is no RAM.
    static func hostAddress(_ text: String) -> UInt64? {
        // "No memory is mapped at address 0x…" ends in an address too.
        let words = text.split(whereSeparator: \.isWhitespace).suffix(2)
        guard words.count == 2, words.first == "is", let word = words.last, word.hasPrefix("0x") else { return nil }
        return UInt64(word.dropFirst(2), radix: 16)
    }

    /// The 8-byte words that `xp /Nxg` printed, as bytes.
    static func dumpedBytes(_ text: String) -> [UInt8] {
        var bytes: [UInt8] = []
        for line in text.split(whereSeparator: \.isNewline) {
            guard let colon = line.firstIndex(of: ":") else { continue }
            for word in line[line.index(after: colon)...].split(whereSeparator: \.isWhitespace) {
                guard word.hasPrefix("0x"), let value = UInt64(word.dropFirst(2), radix: 16) else { continue }
                withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
            }
        }
        return bytes
    }
}
