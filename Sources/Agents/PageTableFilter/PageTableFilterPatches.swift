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

    /// Those that the replaced bytes lie in.
    var pages: Set<GuestVirtualAddress> {
        Set(patches.flatMap { [$0.address.page, ($0.address + UInt64($0.original.count - 1)).page] })
    }

    /// Whether nothing may be changed while a processor stands there: it is on its way through the gate.
    public func isBlocking(_ rip: UInt64) -> Bool { gate.isInside(rip) }

    /// What is to be replaced, in this order, so that the kernel's writes lead to the filter.
    /// - Throws: `malformed` where something else is there.
    public func attachment(in memory: KernelMemory) throws(PageTableFilterError) -> [CodePatch.Place] {
        var result: [CodePatch.Place] = []
        for patch in patches { result += try places(of: patch, holding: patch.original, in: memory) }
        return result
    }

    /// What is to be put back, in this order, so that nothing leads to the filter any more. What is as it was, since
    /// the guest has read its page anew, is left alone.
    ///
    /// Where something else is there, or a page of it is absent, it is not known whether an instruction leads there:
    /// then the gate, which is last, has to stay, and the whole is to be tried again.
    /// - Returns: what can be put back, and what stands against the rest.
    public func detachment(
        in memory: KernelMemory
    ) -> (places: [CodePatch.Place], failure: PageTableFilterError?) {
        var result: [CodePatch.Place] = []
        var failure: PageTableFilterError?
        for (index, patch) in patches.enumerated().reversed() where index > 0 || failure == nil {
            if let bytes = try? memory.bytes(at: patch.address, count: UInt64(patch.original.count)),
                bytes == patch.original
            {
                continue
            }
            do throws(PageTableFilterError) {
                result += try places(of: patch, holding: patch.replacement, in: memory)
            } catch {
                failure = failure ?? error
            }
        }
        return (result, failure)
    }

    /// Where the bytes are now, for whoever has to put them back.
    public func places(in memory: KernelMemory) throws(PageTableFilterError) -> [CodePatch.Place] {
        var result: [CodePatch.Place] = []
        for patch in patches { result += try places(of: patch, in: memory) }
        return result
    }

    private func places(
        of patch: Patch, holding expected: [UInt8], in memory: KernelMemory
    ) throws(PageTableFilterError) -> [CodePatch.Place] {
        // A page that only Windows knows to be in RAM holds what was written to it, too.
        guard let found = try? memory.bytes(at: patch.address, count: UInt64(expected.count)) else {
            throw .malformed("the page of the code at \(patch.address) is absent")
        }
        guard found == expected else { throw .malformed("somebody else has changed the code at \(patch.address)") }
        return try places(of: patch, in: memory)
    }

    private func places(
        of patch: Patch, in memory: KernelMemory
    ) throws(PageTableFilterError) -> [CodePatch.Place] {
        try pieces(of: patch.address, count: patch.original.count, in: memory).map { range, physical in
            CodePatch.Place(
                physical: physical, original: Array(patch.original[range]), patch: Array(patch.replacement[range]),
                entrance: patch.address == gate.handler ? patch.address + UInt64(range.lowerBound) : nil)
        }
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
