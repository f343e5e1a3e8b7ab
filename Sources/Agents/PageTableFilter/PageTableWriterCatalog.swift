import GuestMemory
import WindowsGuest
import X86

/// All instructions of a kernel that have the form of a page-table write, by the address behind each.
///
/// Far more have that form than write page tables: which do is found out by watching page tables
/// (`PageTableWriterSearch`).
public struct PageTableWriterCatalog: Sendable {
    /// In bytes, of a section and of the table of functions: more than any kernel has.
    static let maximumSection: UInt64 = 64 << 20
    static let maximumFunctionTable: UInt64 = 4 << 20

    /// Keyed by `PageTableWriter.end`.
    public private(set) var candidates: [GuestVirtualAddress: PageTableWriter] = [:]
    /// Bytes of code that were not resident, and so not looked at.
    public private(set) var missingBytes = 0

    /// Decodes the code sections that stay: executable, not discardable.
    ///
    /// Functions that the image's table names are decoded each from its start. What lies between them is swept
    /// through, by a byte where nothing can be decoded: assembly has no rows there.
    /// - Throws: `MemoryError` for headers that contradict the address space; pages that are not resident are counted.
    /// - Parameter signOfLife: called again and again, since a large kernel takes its time.
    public init(
        of image: PEImage, in memory: KernelMemory, signOfLife: () -> Void = {}
    ) throws(MemoryError) {
        let functions = try Self.functions(of: image, in: memory)
        for section in image.sections where section.isExecutable && !section.isDiscardable {
            let start = image.address(rva: section.rva)
            let code = try memory.readPartial(
                at: start, count: UInt64(section.virtualSize), maximum: Self.maximumSection)
            missingBytes += code.gaps.reduce(0) { $0 + $1.range.count }
            var position = 0
            for function in functions {
                // Chained rows and garbage overlap: what was decoded once is not decoded again.
                guard section.contains(rva: function.lowerBound) else { continue }
                let begin = max(position, Int(function.lowerBound - section.rva))
                let end = min(code.bytes.count, Int(function.upperBound - section.rva))
                guard begin < end else { continue }
                sweep(code, position..<begin)
                sweep(code, begin..<end)
                if begin >> 16 != end >> 16 { signOfLife() }
                position = end
            }
            sweep(code, position..<code.bytes.count)
        }
    }

    /// The rows of the exception directory as ranges of offsets, sorted; none where it is not resident.
    private static func functions(of image: PEImage, in memory: KernelMemory) throws(MemoryError) -> [Range<UInt32>] {
        guard let directory = image.exceptionDirectory, UInt64(directory.size) <= maximumFunctionTable else {
            return []
        }
        let table = try memory.readPartial(
            at: image.address(rva: directory.rva), count: UInt64(directory.size), maximum: maximumFunctionTable)
        var functions: [Range<UInt32>] = []
        functions.reserveCapacity(table.bytes.count / 12)
        for offset in stride(from: 0, to: table.bytes.count - 11, by: 12) {
            guard let begin = table.load(UInt32.self, at: offset), let end = table.load(UInt32.self, at: offset + 4),
                begin < end, end <= image.size
            else { continue }
            functions.append(begin..<end)
        }
        return functions.sorted { $0.lowerBound < $1.lowerBound }
    }

    private mutating func sweep(_ code: PartialBytes, _ range: Range<Int>) {
        let decoder = InstructionDecoder(mode: .long64)
        code.bytes.withUnsafeBytes { bytes in
            var offset = range.lowerBound
            while offset < range.upperBound {
                if let gap = code.gap(at: offset, count: 1) {
                    offset = gap.range.upperBound
                    continue
                }
                let rest = UnsafeRawBufferPointer(rebasing: bytes[offset..<range.upperBound])
                guard let instruction = decoder.decode(rest, at: (code.address + UInt64(offset)).rawValue) else {
                    offset += 1
                    continue
                }
                let length = Int(instruction.length)
                if let writer = PageTableWriter(instruction), code.contains(offset: offset, count: length) {
                    candidates[writer.end] = writer
                }
                offset += length
            }
        }
    }
}
