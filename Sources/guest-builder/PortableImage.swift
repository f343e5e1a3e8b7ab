import Foundation

/// As much of a linked PE image as the build must check. The input is our own
/// linker's, but a short file is still an error and not a trap.
struct PortableImage {
    struct Section {
        let name: String
        let virtualSize: Int
        let characteristics: UInt32

        var isExecutable: Bool { characteristics & 0x2000_0000 != 0 }
        var isWritable: Bool { characteristics & 0x8000_0000 != 0 }
        var isDiscardable: Bool { characteristics & 0x0200_0000 != 0 }

        /// Bytes from the section's end to the end of its last page, which the
        /// loader leaves zero.
        var slack: Int { (4096 - virtualSize % 4096) % 4096 }
    }

    let file: String
    let sections: [Section]
    let imageSize: Int

    init(contentsOf url: URL) throws {
        let bytes = [UInt8](try Data(contentsOf: url))
        file = url.lastPathComponent

        func integer(_ offset: Int, _ size: Int) throws -> Int {
            guard offset >= 0, offset + size <= bytes.count else {
                throw BuildError.badImage(file: url.path, reason: "the file is too short")
            }
            return bytes[offset..<offset + size].reversed().reduce(0) { $0 << 8 | Int($1) }
        }

        let header = try integer(0x3C, 4)
        guard try integer(header, 4) == 0x4550, try [0x10B, 0x20B].contains(integer(header + 24, 2)) else {
            throw BuildError.badImage(file: url.path, reason: "not a PE image")
        }
        imageSize = try integer(header + 80, 4)
        let table = try header + 24 + integer(header + 20, 2)
        sections = try (0..<integer(header + 6, 2)).map { index in
            let at = table + index * 40
            let name = try (0..<8).map { UInt8(try integer(at + $0, 1)) }.prefix { $0 != 0 }
            return Section(
                name: String(decoding: name, as: UTF8.self),
                virtualSize: try integer(at + 8, 4),
                characteristics: UInt32(try integer(at + 36, 4)))
        }
    }

    func section(_ name: String) throws -> Section {
        guard let section = sections.first(where: { $0.name == name }) else {
            throw BuildError.badImage(file: file, reason: "there is no section \(name)")
        }
        return section
    }
}

/// What every kernel image must be: rules that readers of the guest rely on.
enum KernelRules {
    /// Zeroes wanted after the last byte of `.text`, in its last page.
    static let minimumSlack = 1024
    /// The loader gives the image one large page.
    static let maximumImageSize = 0x20_0000

    static func check(_ image: PortableImage) throws {
        func require(_ condition: Bool, _ reason: String) throws {
            if !condition { throw BuildError.badImage(file: image.file, reason: reason) }
        }
        let text = try image.section(".text")
        try require(
            text.isExecutable && !text.isWritable && !text.isDiscardable,
            ".text is not plain code")
        try require(
            text.slack >= minimumSlack,
            ".text leaves \(text.slack) bytes of its last page, not \(minimumSlack)")
        try require(try image.section("INIT").isDiscardable, "INIT is not discardable")
        for name in ["PAGE", "PAGELK"] {
            let section = try image.section(name)
            try require(
                section.isExecutable && !section.isWritable && !section.isDiscardable,
                "\(name) is not plain code")
        }
        try require(
            image.sections.allSatisfy { !($0.isExecutable && $0.isWritable) },
            "a section is both writable and executable")
        try require(
            image.imageSize <= maximumImageSize,
            "the image takes \(image.imageSize) bytes, more than \(maximumImageSize)")
    }
}
