/// Splits the notes of an ELF core. Format: System V ABI, "Note Section"; names and contents are padded to four
/// bytes in both classes, as QEMU and Linux write them.
enum ELFNotes {
    /// Calls `body` with each note's name, type and contents.
    /// - Returns: false where a length leads outside; what came before was handed over.
    static func forEach(
        in bytes: [UInt8], _ body: (_ name: ArraySlice<UInt8>, _ type: UInt32, _ contents: ArraySlice<UInt8>) -> Void
    ) -> Bool {
        var offset = 0
        while offset < bytes.count {
            guard let nameSize = bytes.integer(UInt32.self, at: offset),
                let size = bytes.integer(UInt32.self, at: offset + 4),
                let type = bytes.integer(UInt32.self, at: offset + 8)
            else { return false }
            let name = offset + 12
            guard let start = end(of: name, nameSize, in: bytes), let next = end(of: start, size, in: bytes) else {
                return false
            }
            body(bytes[name..<name + Int(nameSize)], type, bytes[start..<start + Int(size)])
            offset = next
        }
        return true
    }

    /// Where what follows `size` bytes at `start` begins; nil where those lie outside. The last padding may be missing.
    private static func end(of start: Int, _ size: UInt32, in bytes: [UInt8]) -> Int? {
        guard start <= bytes.count, Int(size) <= bytes.count - start else { return nil }
        return min((start + Int(size) + 3) & ~3, bytes.count)
    }
}
