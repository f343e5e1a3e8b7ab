extension TranslatedMemory {
    /// The zero-terminated string at `address`, without its terminator.
    /// - Parameter maximum: the most bytes it may have, terminator excluded.
    /// - Throws: `tooLong` where no terminator comes in time. Bytes that are no UTF-8 become U+FFFD.
    public func cString(at address: GuestVirtualAddress, maximum: Int) throws(MemoryError) -> String {
        var bytes: [UInt8] = []
        while bytes.count <= maximum {
            let next = address + UInt64(bytes.count)
            let toPageEnd = Int(4096 - (next.rawValue & 0xfff))
            let part = try self.bytes(at: next, count: UInt64(min(toPageEnd, maximum + 1 - bytes.count, 64)))
            if let end = part.firstIndex(of: 0) {
                bytes.append(contentsOf: part[..<end])
                return String(decoding: bytes, as: UTF8.self)
            }
            bytes.append(contentsOf: part)
        }
        throw .tooLong(address, count: UInt64(bytes.count), maximum: UInt64(maximum))
    }

    /// The characters that a UNICODE_STRING at `address` points to: Length and MaximumLength in bytes (16 bits
    /// each), then, as a pointer is aligned, Buffer (Windows SDK, ntdef.h).
    /// - Parameter maximum: the most bytes that are taken for a plausible string.
    /// - Throws: `tooLong` for a longer one. Unpaired surrogates become U+FFFD.
    public func unicodeString(at address: GuestVirtualAddress, maximum: Int) throws(MemoryError) -> String {
        let length = try load(UInt16.self, at: address) & ~1
        guard Int(length) <= maximum else {
            throw .tooLong(address, count: UInt64(length), maximum: UInt64(maximum))
        }
        guard length > 0 else { return "" }
        let buffer = try pointer(at: address + pagingMode.pointerSize)
        let bytes = try bytes(at: buffer, count: UInt64(length))
        let units = stride(from: 0, to: bytes.count - 1, by: 2).map { UInt16(bytes[$0]) | UInt16(bytes[$0 + 1]) << 8 }
        return String(decoding: units, as: UTF16.self)
    }
}
