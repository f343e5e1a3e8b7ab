import GuestMemory

/// The names that an image exports.
///
/// The whole directory is read once. Names whose page is not resident are counted, so that "not exported" and
/// "not known yet" are different answers.
public struct ExportTable: Sendable {
    public struct Export: Hashable, Sendable {
        /// From the image's base, in bytes.
        public var rva: UInt32
        /// The export names a function of another module.
        public var isForwarded: Bool
    }

    /// More than any image exports by name.
    public static let maximumNames: UInt32 = 1 << 16
    /// In bytes.
    public static let maximumNameLength = 512

    /// The name that the image gives itself, such as `ntoskrnl.exe`.
    public let moduleName: String
    public let exports: [String: Export]
    /// How many names could not be read now.
    public let unreadableNames: Int
    private let base: GuestVirtualAddress

    /// Reads the exports of an image.
    /// - Throws: `notYet` where the directory itself is not resident; `malformed` where counts are impossible
    ///   or arrays lie outside the image.
    public init(of image: PEImage, in memory: KernelMemory) throws(DiscoveryError) {
        base = image.base
        guard let directory = image.exportDirectory else {
            throw .malformed("the image exports nothing", at: image.base)
        }
        let start = image.address(rva: directory.rva)
        let whole = try reading("the export directory at \(start)") { () throws(MemoryError) in
            try memory.readPartial(at: start, count: UInt64(directory.size), maximum: 16 << 20)
        }
        let source = Source(image: image, directory: directory, whole: whole, memory: memory)

        let name: UInt32 = try source.field(12)
        let functionCount: UInt32 = try source.field(20)
        let nameCount: UInt32 = try source.field(24)
        guard functionCount <= Self.maximumNames, nameCount <= Self.maximumNames else {
            throw .malformed("an impossible number of exports", at: start)
        }
        let functions = try source.array(at: source.field(28), count: functionCount, width: 4, "export addresses")
        let names = try source.array(at: source.field(32), count: nameCount, width: 4, "export names")
        let ordinals = try source.array(at: source.field(36), count: nameCount, width: 2, "export ordinals")

        moduleName = (try? source.string(name)) ?? ""
        var exports: [String: Export] = [:]
        exports.reserveCapacity(Int(nameCount))
        var unreadable = 0
        for index in 0..<Int(nameCount) {
            guard let nameRVA = names.load(UInt32.self, at: index * 4),
                let ordinal = ordinals.load(UInt16.self, at: index * 2)
            else {
                unreadable += 1
                continue
            }
            let text: String
            do throws(MemoryError) {
                text = try source.string(nameRVA)
            } catch {
                if error.isNotPresent { unreadable += 1 }
                continue
            }
            // An ordinal outside the array, or an address outside the image: this one name is a lie.
            guard UInt32(ordinal) < functionCount else { continue }
            guard let rva = functions.load(UInt32.self, at: Int(ordinal) * 4) else {
                unreadable += 1
                continue
            }
            guard rva != 0, rva < image.size, exports[text] == nil else { continue }
            exports[text] = Export(rva: rva, isForwarded: rva &- directory.rva < directory.size)
        }
        self.exports = exports
        unreadableNames = unreadable
    }

    /// The address of an exported name.
    /// - Throws: `missingExport`; `notYet` where it may be among the names that could not be read; forwarded
    ///   exports are `malformed`, since they have no address here.
    public func address(of name: String) throws(DiscoveryError) -> GuestVirtualAddress {
        guard let export = exports[name] else {
            guard unreadableNames == 0 else {
                throw .notYet(
                    reading: "whether \(moduleName) exports \(name)", .notPresent(base, entry: 0, level: 1))
            }
            throw .missingExport(name)
        }
        guard !export.isForwarded else {
            throw .malformed("\(name) is forwarded to another module", at: base + UInt64(export.rva))
        }
        return base + UInt64(export.rva)
    }

    /// Whether the name is exported, as far as can be told now.
    public func contains(_ name: String) -> Bool { exports[name] != nil }
}

/// What the table is read from: the directory's own bytes, and the image for what lies outside them.
private struct Source {
    let image: PEImage
    let directory: PEImage.Directory
    let whole: PartialBytes
    let memory: KernelMemory

    func field(_ offset: Int) throws(DiscoveryError) -> UInt32 {
        guard let value = whole.load(UInt32.self, at: offset) else {
            let error = whole.gap(at: offset, count: 4)?.error ?? .notPresent(whole.address, entry: 0, level: 1)
            throw DiscoveryError(error, reading: "the export directory at \(whole.address)")
        }
        return value
    }

    func array(
        at rva: UInt32, count: UInt32, width: UInt32, _ what: String
    ) throws(DiscoveryError) -> PartialBytes {
        let size = UInt64(count) * UInt64(width)
        guard UInt64(rva) + size <= UInt64(image.size) else {
            throw .malformed("\(what) lie outside the image", at: whole.address)
        }
        return try reading(what) { () throws(MemoryError) in
            try memory.readPartial(at: image.address(rva: rva), count: size, maximum: 1 << 20)
        }
    }

    /// The name at an offset into the image.
    /// - Throws: `notPresent` where its page is not resident; other errors where it is no name at all.
    func string(_ rva: UInt32) throws(MemoryError) -> String {
        let offset = Int(rva) - Int(directory.rva)
        if offset >= 0, offset < whole.bytes.count {
            let end = min(whole.bytes.count, offset + ExportTable.maximumNameLength)
            if let length = whole.bytes[offset..<end].firstIndex(of: 0).map({ $0 - offset }),
                let text = whole.slice(at: offset, count: length + 1)
            {
                return String(decoding: text.dropLast(), as: UTF8.self)
            }
            if let gap = whole.gap(at: offset, count: end - offset) { throw gap.error }
        }
        let address = image.address(rva: rva)
        guard rva < image.size else { throw .notCanonical(address) }
        return try memory.cString(at: address, maximum: ExportTable.maximumNameLength)
    }
}
