import GuestMemory

/// The headers of a PE32+ (x64) or PE32 (x86) image as it lies in guest memory.
///
/// Headers are hostile input: counts and sizes are capped, and every section must lie within the image.
/// Format: Microsoft, "PE Format".
public struct PEImage: Hashable, Sendable {
    /// A part of the image with its own rights.
    public struct Section: Hashable, Sendable {
        /// At most eight bytes; others than printable ASCII become "?".
        public var name: String
        /// From the image's base, in bytes.
        public var rva: UInt32
        /// In memory, in bytes.
        public var virtualSize: UInt32
        public var characteristics: UInt32

        public init(name: String, rva: UInt32, virtualSize: UInt32, characteristics: UInt32) {
            self.name = name
            self.rva = rva
            self.virtualSize = virtualSize
            self.characteristics = characteristics
        }

        /// IMAGE_SCN_MEM_EXECUTE.
        public var isExecutable: Bool { characteristics & 0x2000_0000 != 0 }
        /// IMAGE_SCN_MEM_WRITE.
        public var isWritable: Bool { characteristics & 0x8000_0000 != 0 }
        /// IMAGE_SCN_MEM_DISCARDABLE.
        public var isDiscardable: Bool { characteristics & 0x0200_0000 != 0 }

        public func contains(rva: UInt32) -> Bool { rva &- self.rva < virtualSize }
    }

    /// A table's place and size.
    public struct Directory: Hashable, Sendable {
        public var rva: UInt32
        public var size: UInt32
    }

    /// The Windows loader takes no more.
    public static let maximumSections = 96
    /// In bytes. The largest kernels are under 32 MiB.
    public static let maximumSize: UInt32 = 128 << 20

    /// From the image's base, in bytes: the header's fixed part lies in the first page.
    static let maximumHeaderOffset: UInt64 = 0xe00
    /// In bytes: with all the sections that there can be, and a PE header as far in as it may be, there are fewer.
    static let maximumHeaders: UInt64 = 0x3000

    public let base: GuestVirtualAddress
    /// What it is built for: a 64-bit guest has 32-bit programs, too.
    public let architecture: KernelArchitecture
    /// SizeOfImage, in bytes.
    public let size: UInt32
    public let timeDateStamp: UInt32
    public let sections: [Section]
    public let exportDirectory: Directory?
    /// The table of functions (`.pdata`): rows of 12 bytes, each with the first two a function's start and end.
    public let exceptionDirectory: Directory?

    /// Reads the headers at `base`.
    /// - Throws: `notYet` where their page is not resident; `malformed` where they are none of an image for
    ///   x86-64 or x86, or lie about their bounds.
    public init(at base: GuestVirtualAddress, in memory: KernelMemory) throws(DiscoveryError) {
        func malformed(_ what: String) -> DiscoveryError { .malformed(what, at: base) }
        var bytes = try reading("the image header at \(base)") { () throws(MemoryError) in
            PartialBytes(address: base, bytes: try memory.bytes(at: base, count: 4096))
        }
        guard bytes.load(UInt16.self, at: 0) == 0x5a4d else { throw malformed("no MZ signature") }
        guard let newHeader = bytes.load(UInt32.self, at: 0x3c), newHeader <= Self.maximumHeaderOffset else {
            throw malformed("the PE header lies outside the first page")
        }
        let file = Int(newHeader) + 4
        let optional = file + 20
        guard bytes.load(UInt32.self, at: Int(newHeader)) == 0x4550 else { throw malformed("no PE signature") }
        let directories: Int
        switch (bytes.load(UInt16.self, at: file), bytes.load(UInt16.self, at: optional)) {
        case (0x8664, 0x20b): (architecture, directories) = (.x64, 112)
        case (0x14c, 0x10b): (architecture, directories) = (.x86, 96)
        default: throw malformed("neither a PE32+ image for x86-64 nor a PE32 image for x86")
        }
        guard let sectionCount = bytes.load(UInt16.self, at: file + 2), sectionCount >= 1,
            sectionCount <= Self.maximumSections
        else { throw malformed("an impossible number of sections") }
        guard let optionalSize = bytes.load(UInt16.self, at: file + 16), Int(optionalSize) >= directories,
            let size = bytes.load(UInt32.self, at: optional + 56), size >= 0x1000, size <= Self.maximumSize
        else { throw malformed("an impossible size") }

        self.base = base
        self.size = size
        timeDateStamp = bytes.load(UInt32.self, at: file + 4) ?? 0
        let table = optional + Int(optionalSize)
        let headers = UInt64(table + 40 * Int(sectionCount))
        if headers > 4096 {
            guard headers <= min(Self.maximumHeaders, UInt64(size)) else { throw malformed("headers without an end") }
            bytes = try reading("the image header at \(base)") { () throws(MemoryError) in
                PartialBytes(address: base, bytes: try memory.bytes(at: base, count: headers))
            }
        }
        sections = try Self.sections(bytes, at: table, count: Int(sectionCount), imageSize: size)
        func directory(_ index: Int, _ name: String, least: UInt32) throws(DiscoveryError) -> Directory? {
            try Self.directory(
                bytes, at: optional + directories, index, room: Int(optionalSize) - directories, imageSize: size,
                name: name, least: least)
        }
        exportDirectory = try directory(0, "export", least: 40)
        exceptionDirectory = try directory(3, "exception", least: 12)
    }

    private static func sections(
        _ bytes: PartialBytes, at start: Int, count: Int, imageSize: UInt32
    ) throws(DiscoveryError) -> [Section] {
        var sections: [Section] = []
        sections.reserveCapacity(count)
        for index in 0..<count {
            let header = start + index * 40
            guard let name = bytes.slice(at: header, count: 8),
                let virtualSize = bytes.load(UInt32.self, at: header + 8),
                let rva = bytes.load(UInt32.self, at: header + 12),
                let rawSize = bytes.load(UInt32.self, at: header + 16),
                let characteristics = bytes.load(UInt32.self, at: header + 36)
            else { throw .malformed("section headers run past the headers", at: bytes.address) }
            let size = virtualSize != 0 ? virtualSize : rawSize
            guard rva <= imageSize, size <= imageSize - rva else {
                throw .malformed("section \(index) lies outside the image", at: bytes.address)
            }
            let text = name.prefix { $0 != 0 }.map { (0x20..<0x7f).contains($0) ? $0 : UInt8(ascii: "?") }
            sections.append(
                Section(
                    name: String(decoding: text, as: UTF8.self), rva: rva, virtualSize: size,
                    characteristics: characteristics))
        }
        return sections
    }

    /// - Parameter least: a directory of fewer bytes is none of its kind.
    private static func directory(
        _ bytes: PartialBytes, at start: Int, _ index: Int, room: Int, imageSize: UInt32, name: String, least: UInt32
    ) throws(DiscoveryError) -> Directory? {
        // NumberOfRvaAndSizes, then the directories of eight bytes each.
        let offset = 8 * index
        guard room >= offset + 8, let count = bytes.load(UInt32.self, at: start - 4), count > UInt32(index),
            let rva = bytes.load(UInt32.self, at: start + offset), rva != 0,
            let size = bytes.load(UInt32.self, at: start + offset + 4)
        else { return nil }
        guard rva < imageSize, size <= imageSize - rva, size >= least else {
            throw .malformed("the \(name) directory lies outside the image", at: bytes.address)
        }
        return Directory(rva: rva, size: size)
    }

    /// The address of an offset into the image.
    public func address(rva: UInt32) -> GuestVirtualAddress { base + UInt64(rva) }

    /// The offset of an address into the image, where it lies inside.
    public func rva(of address: GuestVirtualAddress) -> UInt32? {
        let distance = address.distance(from: base)
        return distance < UInt64(size) ? UInt32(distance) : nil
    }

    public func contains(_ address: GuestVirtualAddress) -> Bool { rva(of: address) != nil }

    /// The section that an address lies in.
    public func section(containing address: GuestVirtualAddress) -> Section? {
        guard let rva = rva(of: address) else { return nil }
        return sections.first { $0.contains(rva: rva) }
    }

    /// Whether an address lies in a section that holds code.
    public func isExecutable(_ address: GuestVirtualAddress) -> Bool {
        section(containing: address)?.isExecutable ?? false
    }

    public func section(named name: String) -> Section? { sections.first { $0.name == name } }
}
