import Foundation
import GuestMemory
import TestSupport

@testable import MemoryImage

/// Writes ELF cores of either class, right ones and wrong ones.
struct CoreBuilder {
    struct Segment {
        var type: UInt32 = 1
        var virtual: UInt64 = 0
        var physical: UInt64 = 0
        var contents: [UInt8] = []
        /// Instead of where the contents are, and how many.
        var offset: UInt64?
        var size: UInt64?
    }

    var is64 = true
    var machine: UInt16 = 62
    var type: UInt16 = 4
    var byteOrder: UInt8 = 1
    var segments: [Segment] = []
    /// The number of segments is where PN_XNUM puts it.
    var hasExtendedCount = false
    /// Instead of the number of segments.
    var count: UInt64?

    static func load(_ physical: UInt64, _ contents: [UInt8], virtual: UInt64? = nil) -> Segment {
        Segment(virtual: virtual ?? physical, physical: physical, contents: contents)
    }

    static func notes(_ contents: [UInt8]) -> Segment { Segment(type: 4, contents: contents) }

    static func bytes<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
        withUnsafeBytes(of: value.littleEndian) { Array($0) }
    }

    static func note(_ name: String, _ type: UInt32, _ contents: [UInt8]) -> [UInt8] {
        func padded(_ bytes: [UInt8]) -> [UInt8] { bytes + [UInt8](repeating: 0, count: -bytes.count & 3) }
        let name = Array(name.utf8) + [0]
        return bytes(UInt32(name.count)) + bytes(UInt32(contents.count)) + bytes(type) + padded(name)
            + padded(contents)
    }

    /// QEMU's note of a vCPU.
    static func processor(
        cr0: UInt64 = 0x8005_0033, cr3: UInt64, cr4: UInt64 = 0x6f8, idt: UInt64, codeSelector: UInt32 = 0x10,
        version: UInt32 = 1, size: UInt32 = 440
    ) -> [UInt8] {
        var state = [UInt8](repeating: 0, count: 440)
        func put<Value: FixedWidthInteger>(_ value: Value, at offset: Int) {
            state.replaceSubrange(offset..<offset + MemoryLayout<Value>.size, with: bytes(value))
        }
        put(version, at: 0)
        put(size, at: 4)
        put(codeSelector, at: 8 + 18 * 8)
        // GDT and IDT are the last two of ten descriptors of 24 bytes.
        put(UInt32(0x57), at: 152 + 8 * 24 + 4)
        put(UInt64(0xffff_f806_4904_0000), at: 152 + 8 * 24 + 16)
        put(UInt32(0xfff), at: 152 + 9 * 24 + 4)
        put(idt, at: 152 + 9 * 24 + 16)
        for (index, value) in [cr0, 0, 0x1234, cr3, cr4].enumerated() { put(value, at: 392 + index * 8) }
        return note("QEMU", 0, state)
    }

    /// The file's bytes: header, first section header, program headers, contents.
    func build() -> [UInt8] {
        let (headerSize, sectionSize, segmentSize) = is64 ? (64, 64, 56) : (52, 40, 32)
        func word(_ value: UInt64) -> [UInt8] {
            is64 ? Self.bytes(value) : Self.bytes(UInt32(truncatingIfNeeded: value))
        }
        let number = count ?? UInt64(segments.count)
        let tableOffset = UInt64(headerSize + sectionSize)
        var file: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, is64 ? 2 : 1, byteOrder, 1] + [UInt8](repeating: 0, count: 9)
        file += Self.bytes(type) + Self.bytes(machine) + Self.bytes(UInt32(1)) + word(0) + word(tableOffset)
        file += word(UInt64(headerSize)) + Self.bytes(UInt32(0))
        // e_ehsize as QEMU 7.2 has it.
        file += Self.bytes(UInt16(8)) + Self.bytes(UInt16(segmentSize))
        file += Self.bytes(hasExtendedCount ? UInt16(0xffff) : UInt16(truncatingIfNeeded: number))
        file += Self.bytes(UInt16(sectionSize)) + Self.bytes(UInt16(1)) + Self.bytes(UInt16(0))
        var section = [UInt8](repeating: 0, count: sectionSize)
        if hasExtendedCount {
            let place = is64 ? 44 : 28
            section.replaceSubrange(place..<place + 4, with: Self.bytes(UInt32(truncatingIfNeeded: number)))
        }
        file += section
        var next = UInt64(file.count + segments.count * segmentSize)
        for segment in segments {
            let offset = segment.offset ?? next
            let size = segment.size ?? UInt64(segment.contents.count)
            if is64 {
                file += Self.bytes(segment.type) + Self.bytes(UInt32(0)) + word(offset) + word(segment.virtual)
                file += word(segment.physical) + word(size) + word(size) + word(0)
            } else {
                file += Self.bytes(segment.type) + word(offset) + word(segment.virtual) + word(segment.physical)
                file += word(size) + word(size) + Self.bytes(UInt32(0)) + word(0)
            }
            next += UInt64(segment.contents.count)
        }
        for segment in segments { file += segment.contents }
        return file
    }
}

/// A file's bytes, in memory.
extension [UInt8]: ImageBytes {
    public var size: UInt64 { UInt64(count) }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Int32 {
        let start = Int(offset)
        buffer.copyBytes(from: self[start..<start + buffer.count])
        return 0
    }
}

/// A file below /tmp that goes with its object.
final class TemporaryFile {
    let path: String

    init(_ bytes: [UInt8] = []) throws {
        path = "/tmp/vigil-image-\(getpid())-\(UInt64.random(in: .min ... .max))"
        try Data(bytes).write(to: URL(fileURLWithPath: path))
    }

    deinit { unlink(path) }
}

/// Reads what regions of a core hold, as `PhysicalMemory` would.
extension ELFCore {
    func bytes(at physical: UInt64, count: Int, of file: [UInt8]) -> [UInt8]? {
        guard let region = regions.first(where: { physical &- $0.base.rawValue < $0.length }),
            region.length - (physical - region.base.rawValue) >= UInt64(count)
        else { return nil }
        let start = Int(region.hostAddress + (physical - region.base.rawValue))
        return Array(file[start..<start + count])
    }
}
