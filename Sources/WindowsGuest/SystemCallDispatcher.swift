import GuestMemory
import X86

/// The code that looks a system call's service up (KiSystemServiceRepeat), as far as it was followed.
///
/// x64 loads both descriptor tables one after the other:
/// `4C 8D 15 rel32` lea r10, [KeServiceDescriptorTable]; `4C 8D 1D rel32` lea r11, [KeServiceDescriptorTableShadow].
/// x86 takes the number apart, `mov edi, eax; shr edi, 8`, and has the table's address from the thread (to Windows 7)
/// or as an immediate.
struct SystemCallDispatcher {
    /// From a stub to the place there are forty to a hundred instructions.
    static let maximumInstructions = 256

    /// The descriptor that it loads; nil on x86, where the thread has it.
    var descriptor: GuestVirtualAddress?
    var shadow: GuestVirtualAddress?
    /// The first instruction of the place.
    var address: GuestVirtualAddress
    /// The pages of the code that was looked at.
    var pages: Set<GuestVirtualAddress>

    /// Follows the straight path from where the kernel's stubs lead, over jumps, to that place.
    /// - Returns: nil where it is not reached so.
    static func follow(
        from start: GuestVirtualAddress, of kernel: WindowsKernel, reader: CodeReader
    ) throws(DiscoveryError) -> Self? {
        var path = Path()
        var address = start
        for _ in 0..<maximumInstructions {
            let next = address
            guard kernel.image.isExecutable(next) else { return nil }
            let decoded = try reading("the system-call dispatcher at \(next)") { () throws(MemoryError) in
                try reader.instruction(at: next)
            }
            guard let instruction = decoded else { return nil }
            path.pages.formUnion([next.page, GuestVirtualAddress(instruction.nextAddress &- 1).page])
            let found = kernel.architecture == .x64 ? path.take64(instruction) : path.take32(instruction)
            if let found { return found }
            if instruction.isUnconditionalJump {
                guard let target = instruction.relativeTarget ?? path.target(of: instruction) else { return nil }
                address = GuestVirtualAddress(target)
                continue
            }
            guard instruction.fallsThrough else { return nil }
            address = GuestVirtualAddress(instruction.nextAddress)
        }
        return nil
    }

    /// Searches all code of an x64 kernel for the two loads and the TEST (F7) that follows them.
    /// - Returns: nil where there is no such place.
    /// - Throws: `ambiguous` where several load different tables; `notYet`.
    static func scan(_ kernel: WindowsKernel) throws(DiscoveryError) -> Self? {
        let any = BytePattern.wildcard
        let elements: [UInt16] = [
            0x4c, 0x8d, 0x15, any, any, any, any, 0x4c, 0x8d, 0x1d, any, any, any, any, 0xf7,
        ]
        guard kernel.architecture == .x64, let pattern = try? BytePattern(elements) else { return nil }
        var found: [Self] = []
        var gap: MemoryError?
        for section in kernel.image.sections where section.isExecutable && !section.isDiscardable {
            let code = try kernel.code(of: section)
            // The dispatcher is never pageable.
            if !section.name.hasPrefix("PAGE") { gap = gap ?? code.gaps.first?.error }
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
                    found.append(Self(descriptor: target, shadow: shadow, address: place, pages: Set(pages)))
                }
            }
        }
        if found.count > 1 {
            throw .ambiguous(
                "the system-service descriptor table", candidates: found.compactMap(\.descriptor).sorted())
        }
        // There may be one more.
        if let gap { throw DiscoveryError(gap, reading: "the system-call dispatcher") }
        return found.first
    }
}

/// What is known on the way to the dispatcher.
private struct Path {
    var pages: Set<GuestVirtualAddress> = []
    private var r10: (table: UInt64, at: GuestVirtualAddress)?
    private var r11: UInt64?
    /// x86: the register that the instruction before copied EAX to.
    private var copy: (register: Register, at: GuestVirtualAddress)?

    /// `jmp r11`, after R11 was loaded with an address.
    func target(of jump: Instruction) -> UInt64? {
        jump.operands[0].register == .r11 ? r11 : nil
    }

    mutating func take64(_ instruction: Instruction) -> SystemCallDispatcher? {
        let loaded = instruction.mnemonic == .lea ? instruction.operands[1].memory?.absoluteAddress : nil
        if let loaded, instruction.destination == .r11 {
            // The two tables are loaded one right after the other.
            if let r10 {
                return SystemCallDispatcher(
                    descriptor: GuestVirtualAddress(r10.table), shadow: GuestVirtualAddress(loaded), address: r10.at,
                    pages: pages)
            }
            r11 = loaded
        }
        r10 = instruction.destination == .r10 ? loaded.map { ($0, GuestVirtualAddress(instruction.address)) } : nil
        return nil
    }

    mutating func take32(_ instruction: Instruction) -> SystemCallDispatcher? {
        let (target, source) = (instruction.operands[0], instruction.operands[1])
        if let copy, instruction.mnemonic == .shr, target.register == copy.register, source.immediate == 8 {
            return SystemCallDispatcher(descriptor: nil, shadow: nil, address: copy.at, pages: pages)
        }
        copy = nil
        if instruction.mnemonic == .mov, source.register == .eax, let register = target.register {
            copy = (register, GuestVirtualAddress(instruction.address))
        }
        return nil
    }
}
