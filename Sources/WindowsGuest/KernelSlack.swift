import GuestMemory

/// Unused bytes at the end of a section's last page, where code can be put for a while.
public struct KernelSlack: Hashable, Sendable {
    /// The first byte, 16-byte aligned.
    public var address: GuestVirtualAddress
    /// So many bytes from there on are zero, to the page's end.
    public var available: UInt64
    public var section: String

    static let alignment: UInt64 = 16

    /// Finds `count` zero bytes behind the contents of one of the kernel's code sections.
    ///
    /// Only sections whose code stays where it is: executable, not writable, not discardable, not pageable
    /// (`PAGE*`) and not thrown away after start-up (`INIT*`). Sections are tried in the image's order, so that
    /// the answer is the same for each boot of a kernel.
    /// - Throws: `notYet` where a page that would do is not resident, `notFound` where none would.
    public static func find(_ count: Int, in kernel: WindowsKernel) throws(DiscoveryError) -> KernelSlack {
        var missing: MemoryError?
        for section in kernel.image.sections where isSuitable(section, of: kernel) {
            do throws(MemoryError) {
                if let slack = try slack(of: section, count: count, in: kernel) { return slack }
            } catch {
                missing = missing ?? error
            }
        }
        let what = "\(count) unused zero bytes at the end of a code section"
        if let missing { throw DiscoveryError(missing, reading: what) }
        throw .notFound(what)
    }

    static func isSuitable(_ section: PEImage.Section, of kernel: WindowsKernel) -> Bool {
        guard section.isExecutable, !section.isWritable, !section.isDiscardable, !section.name.hasPrefix("PAGE"),
            !section.name.hasPrefix("INIT")
        else { return false }
        // A name tells; without one, what is in it: a crashing kernel cannot wait for a page.
        guard section.name.isEmpty else { return true }
        guard let crash = try? kernel.export("KeBugCheckEx"), let rva = kernel.image.rva(of: crash) else {
            return false
        }
        return section.contains(rva: rva)
    }

    private static func slack(
        of section: PEImage.Section, count: Int, in kernel: WindowsKernel
    ) throws(MemoryError) -> KernelSlack? {
        guard count > 0, count <= 4096 else { return nil }
        let end = UInt64(section.rva) + UInt64(section.virtualSize)
        let pageEnd = (end + 4095) & ~4095
        let start = (end + alignment - 1) & ~(alignment - 1)
        guard section.virtualSize > 0, pageEnd <= UInt64(kernel.image.size), start < pageEnd,
            pageEnd - start >= UInt64(count)
        else { return nil }
        // Another section may share the page.
        let range = start..<pageEnd
        guard !kernel.image.sections.contains(where: { range.contains(UInt64($0.rva)) }) else { return nil }

        let address = kernel.base + start
        // The processor's own view: the page is to be executed.
        let translation = try kernel.memory.hardware.translate(address)
        guard translation.isExecutable, !translation.isUser else { return nil }
        let bytes = try kernel.memory.hardware.bytes(at: address, count: pageEnd - start)
        let zeroes = bytes.prefix { $0 == 0 }.count
        guard zeroes >= count else { return nil }
        return KernelSlack(address: address, available: UInt64(zeroes), section: section.name)
    }
}
