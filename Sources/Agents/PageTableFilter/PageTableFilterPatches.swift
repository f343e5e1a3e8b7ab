import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// What is changed in the kernel's code so that its page-table writes lead to the filter: the vector's handler, and
/// the writing instructions.
///
/// Each is one instruction replaced by one of the same length, but for the handler's first bytes: a processor may
/// stand anywhere but in those. Where the code lies in physical memory is asked for at each change, since a guest may
/// move it.
public struct PageTableFilterPatches: Sendable {
    /// Bytes of code, and what replaces them.
    public struct Patch: Hashable, Sendable {
        public var address: GuestVirtualAddress
        public var original: [UInt8]
        public var replacement: [UInt8]
    }

    /// Bytes of code to be written, within one page.
    public struct Write: Hashable, Sendable {
        public var physical: GuestPhysicalAddress
        public var bytes: [UInt8]
    }

    public let gate: GatePatch
    /// In the order in which they are put there: the handler first. They are taken back in the opposite one.
    public let patches: [Patch]

    /// Reads what will be replaced.
    /// - Throws: `malformed` where an instruction is not, or not any more, where it was found.
    public init(
        gate: GatePatch, writers: some Sequence<PageTableWriter>, in memory: KernelMemory
    ) throws(PageTableFilterError) {
        let decoder = InstructionDecoder(mode: .long64)
        var patches = [Patch(address: gate.handler, original: gate.original, replacement: gate.replacement)]
        // In the order of their addresses, so that the same guest is always changed in the same way.
        var end = GuestVirtualAddress(0)
        for writer in Set(writers).sorted(by: { $0.address < $1.address }) {
            guard writer.address >= end else {
                throw .malformed("the instruction at \(writer.address) overlaps another one")
            }
            end = writer.end
            guard let bytes = try? memory.hardware.bytes(at: writer.address, count: UInt64(writer.length)),
                let instruction = decoder.decode(bytes, at: writer.address.rawValue),
                PageTableWriter(instruction) == writer
            else { throw .malformed("the instruction at \(writer.address) is not there any more") }
            patches.append(Patch(address: writer.address, original: bytes, replacement: writer.patch))
        }
        self.gate = gate
        self.patches = patches
    }

    /// Whether nothing may be changed while a processor stands there: it is on its way through the gate.
    public func isBlocking(_ rip: UInt64) -> Bool { gate.isInside(rip) }

    /// What is to be written, in this order, so that the kernel's writes lead to the filter.
    /// - Throws: `malformed` where something else is there.
    public func attachment(in memory: KernelMemory) throws(PageTableFilterError) -> [Write] {
        var writes: [Write] = []
        for patch in patches {
            writes += try replace(patch.original, by: patch.replacement, at: patch.address, in: memory)
        }
        return writes
    }

    /// What is to be written, in this order, so that nothing leads to the filter any more. What is as it was, since the
    /// guest has read its page anew, is left alone.
    /// - Throws: `malformed` where something else is there, or a page of it is absent: then it is not known whether
    ///   something leads there.
    public func detachment(in memory: KernelMemory) throws(PageTableFilterError) -> [Write] {
        var writes: [Write] = []
        for patch in patches.reversed() {
            if let bytes = try? memory.bytes(at: patch.address, count: UInt64(patch.original.count)),
                bytes == patch.original
            {
                continue
            }
            writes += try replace(patch.replacement, by: patch.original, at: patch.address, in: memory)
        }
        return writes
    }

    /// Where the replaced bytes are now, for whoever has to put them back.
    public func places(in memory: KernelMemory) throws(PageTableFilterError) -> [CodePatch.Place] {
        var places: [CodePatch.Place] = []
        for patch in patches {
            for (range, physical) in try pieces(of: patch.address, count: patch.original.count, in: memory) {
                places.append(
                    CodePatch.Place(
                        physical: physical, original: Array(patch.original[range]),
                        patch: Array(patch.replacement[range])))
            }
        }
        return places
    }

    private func replace(
        _ expected: [UInt8], by bytes: [UInt8], at address: GuestVirtualAddress, in memory: KernelMemory
    ) throws(PageTableFilterError) -> [Write] {
        // A page that only Windows knows to be in RAM holds what was written to it, too.
        guard let found = try? memory.bytes(at: address, count: UInt64(expected.count)) else {
            throw .malformed("the page of the code at \(address) is absent")
        }
        guard found == expected else { throw .malformed("somebody else has changed the code at \(address)") }
        var writes: [Write] = []
        for (range, physical) in try pieces(of: address, count: bytes.count, in: memory) {
            writes.append(Write(physical: physical, bytes: Array(bytes[range])))
        }
        return writes
    }

    /// The parts of a range that lie in one page each.
    private func pieces(
        of address: GuestVirtualAddress, count: Int, in memory: KernelMemory
    ) throws(PageTableFilterError) -> [(Range<Int>, GuestPhysicalAddress)] {
        var pieces: [(Range<Int>, GuestPhysicalAddress)] = []
        var done = 0
        while done < count {
            let next = address + UInt64(done)
            guard let translation = try? memory.translate(next) else {
                throw .malformed("the page of the code at \(next) is absent")
            }
            let part = min(count - done, Int(4096 - next.rawValue & 0xfff))
            pieces.append((done..<done + part, translation.physical))
            done += part
        }
        return pieces
    }
}
