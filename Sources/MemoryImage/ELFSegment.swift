/// A part of an ELF core: memory by its physical address, or notes.
struct ELFSegment: Equatable {
    /// PT_LOAD and PT_NOTE; there are others.
    static let load: UInt32 = 1
    static let note: UInt32 = 4

    var type: UInt32
    /// In the file, in bytes.
    var offset: UInt64
    var virtual: UInt64
    var physical: UInt64
    /// The bytes that are in the file. In memory there may be more, of which nothing is known then.
    var size: UInt64

    init?(_ bytes: [UInt8], at start: Int, _ elfClass: ELFHeader.Class) {
        let is64 = elfClass == .elf64
        guard let type = bytes.integer(UInt32.self, at: start),
            let offset = elfClass.word(bytes, at: start + (is64 ? 8 : 4)),
            let virtual = elfClass.word(bytes, at: start + (is64 ? 16 : 8)),
            let physical = elfClass.word(bytes, at: start + (is64 ? 24 : 12)),
            let size = elfClass.word(bytes, at: start + (is64 ? 32 : 16))
        else { return nil }
        self.type = type
        self.offset = offset
        self.virtual = virtual
        self.physical = physical
        self.size = size
    }

    /// Calls `body` with each segment of a core, in the file's order. The table is read a piece at a time.
    static func forEach(
        of header: ELFHeader, in file: some ImageBytes, _ body: (ELFSegment) throws(ImageError) -> Void
    ) throws(ImageError) {
        let width = UInt64(header.elfClass.segmentHeaderSize)
        let whole = header.segmentCount &* width
        guard file.holds(offset: header.segmentsOffset, count: whole) else {
            throw .cutShort(
                "the table of program headers", offset: header.segmentsOffset, count: whole, size: file.size)
        }
        var done: UInt64 = 0
        while done < header.segmentCount {
            let count = min(header.segmentCount - done, 1024)
            let bytes = try file.bytes(
                at: header.segmentsOffset + done * width, count: count * width, "program headers")
            for index in 0..<Int(count) {
                guard let segment = ELFSegment(bytes, at: index * Int(width), header.elfClass) else { continue }
                try body(segment)
            }
            done += count
        }
    }
}
