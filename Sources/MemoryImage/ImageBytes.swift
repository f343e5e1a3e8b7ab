import GuestMemory

/// The bytes of a memory image's file, read a piece at a time. Whatever is asked for, nothing outside is read.
protocol ImageBytes {
    /// In bytes.
    var size: UInt64 { get }
    /// Fills `buffer` from `offset` on. The range lies inside.
    /// - Returns: 0, or an errno.
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Int32
}

extension RAMFile: ImageBytes {}

extension ImageBytes {
    /// The most that is read in one piece, in bytes: a length from a file cannot make the host allocate at will.
    static var maximumPiece: UInt64 { 16 << 20 }

    /// Whether `count` bytes at `offset` lie inside.
    func holds(offset: UInt64, count: UInt64) -> Bool { offset <= size && count <= size - offset }

    /// `count` bytes at `offset`.
    /// - Parameter what: what lies there, for the error.
    /// - Throws: `cutShort` where the file ends before; `tooLarge`; `unreadable`.
    func bytes(at offset: UInt64, count: UInt64, _ what: String) throws(ImageError) -> [UInt8] {
        guard holds(offset: offset, count: count) else {
            throw .cutShort(what, offset: offset, count: count, size: size)
        }
        guard count <= Self.maximumPiece else { throw .tooLarge(what, count: count, maximum: Self.maximumPiece) }
        var bytes = [UInt8](repeating: 0, count: Int(count))
        let error = bytes.withUnsafeMutableBytes { read(at: offset, into: $0) }
        guard error == 0 else { throw .unreadable(what, errno: error) }
        return bytes
    }
}

extension [UInt8] {
    /// The little-endian integer at `offset`, where all of it lies inside.
    func integer<Value: FixedWidthInteger & BitwiseCopyable>(_ type: Value.Type, at offset: Int) -> Value? {
        let width = MemoryLayout<Value>.size
        guard offset >= 0, count >= width, offset <= count - width else { return nil }
        return withUnsafeBytes { Value(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: type)) }
    }
}
