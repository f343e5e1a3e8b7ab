/// Lays out a PE32+ or PE32 image as it lies in memory: headers, sections, exports.
public struct SyntheticImage {
    public struct Section {
        public var name: String
        public var rva: UInt32
        public var virtualSize: UInt32
        public var characteristics: UInt32
        public var contents: [UInt8]

        public init(name: String, rva: UInt32, virtualSize: UInt32, characteristics: UInt32, contents: [UInt8] = []) {
            self.name = name
            self.rva = rva
            self.virtualSize = virtualSize
            self.characteristics = characteristics
            self.contents = contents
        }

        public static let code: UInt32 = 0x6800_0020
        public static let readOnly: UInt32 = 0x4800_0040
        public static let data: UInt32 = 0xc800_0040
        public static let discardableCode: UInt32 = 0x6200_0020
    }

    public var name: String
    public var size: UInt32
    public var timeDateStamp: UInt32 = 0x5f3a_9c21
    public var sections: [Section]
    /// Where the export directory goes; its section must have room for it.
    public var exportRVA: UInt32
    public var exports: [String: UInt32] = [:]
    /// PE32+ for x86-64; else PE32 for x86.
    public var is64Bit = true
    public var sectionAlignment: UInt32 = 0x1000
    /// Where the PE header is, in bytes.
    public var headerOffset = 0x100

    public init(name: String, size: UInt32, sections: [Section], exportRVA: UInt32) {
        self.name = name
        self.size = size
        self.sections = sections
        self.exportRVA = exportRVA
    }

    /// The image's bytes, from its base on.
    public func bytes() -> [UInt8] {
        var image = [UInt8](repeating: 0, count: Int(size))
        for part in parts() {
            image.replaceSubrange(Int(part.rva)..<Int(part.rva) + part.bytes.count, with: part.bytes)
        }
        return image
    }

    /// What of the image is not zero: the headers, the sections' contents, the export directory.
    public func parts() -> [(rva: UInt32, bytes: [UInt8])] {
        let directory = exportDirectory()
        return [(0, headers(exportSize: UInt32(directory.count)))] + sections.map { ($0.rva, $0.contents) }
            + [(exportRVA, directory)]
    }

    private func headers(exportSize: UInt32) -> [UInt8] {
        let directories = is64Bit ? 112 : 96
        let header = headerOffset
        let optional = header + 0x18
        var image = [UInt8](repeating: 0, count: optional + directories + 128 + 40 * sections.count)
        func put(_ bytes: [UInt8], _ offset: Int) { image.replaceSubrange(offset..<offset + bytes.count, with: bytes) }
        func put16(_ value: UInt16, _ offset: Int) { put([UInt8(value & 255), UInt8(value >> 8)], offset) }
        func put32(_ value: UInt32, _ offset: Int) {
            put((0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }, offset)
        }
        put(Array("MZ".utf8), 0)
        put32(UInt32(header), 0x3c)
        put(Array("PE".utf8), header)
        put16(is64Bit ? 0x8664 : 0x14c, header + 4)
        put16(UInt16(sections.count), header + 6)
        put32(timeDateStamp, header + 8)
        put16(UInt16(directories + 128), header + 0x14)
        put16(is64Bit ? 0x20b : 0x10b, optional)
        put32(sectionAlignment, optional + 32)
        put32(size, optional + 56)
        put32(0x1000, optional + 60)
        put32(16, optional + directories - 4)
        put32(exportRVA, optional + directories)
        put32(exportSize, optional + directories + 4)
        for (index, section) in sections.enumerated() {
            let header = optional + directories + 128 + index * 40
            put(Array(section.name.utf8.prefix(8)), header)
            put32(section.virtualSize, header + 8)
            put32(section.rva, header + 12)
            put32(section.virtualSize, header + 16)
            put32(section.characteristics, header + 36)
        }
        return image
    }

    /// IMAGE_EXPORT_DIRECTORY, its arrays and names, one after the other.
    private func exportDirectory() -> [UInt8] {
        let sorted = exports.sorted { $0.key < $1.key }
        let count = UInt32(sorted.count)
        var result: [UInt8] = []
        func put32(_ value: UInt32) { result += (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
        let functions = exportRVA + 40
        let names = functions + count * 4
        let ordinals = names + count * 4
        let strings = ordinals + count * 2
        var nextString = strings + UInt32(name.utf8.count) + 1
        for value in [0, 0, 0, strings, 1, count, count, functions, names, ordinals] { put32(value) }
        for export in sorted { put32(export.value) }
        for export in sorted {
            put32(nextString)
            nextString += UInt32(export.key.utf8.count) + 1
        }
        for index in sorted.indices { result += [UInt8(index & 255), UInt8(index >> 8)] }
        result += Array(name.utf8) + [0]
        for export in sorted { result += Array(export.key.utf8) + [0] }
        return result
    }
}
