#if canImport(Glibc)
    import Glibc
#else
    import Musl
#endif

/// A file that holds guest RAM, read a piece at a time.
///
/// Each read is a `pread`, not an access to a mapping: where somebody cuts the file short meanwhile, a read fails,
/// while an access to a mapping would end this process (SIGBUS).
public final class RAMFile {
    @usableFromInline let descriptor: Int32
    /// In bytes, when it was opened.
    public let size: UInt64

    /// - Parameters:
    ///   - descriptor: of a regular file, open for reading. It is closed with this object.
    ///   - size: the file's, in bytes.
    public init(descriptor: Int32, size: UInt64) {
        self.descriptor = descriptor
        self.size = size
    }

    deinit { close(descriptor) }

    /// Fills `buffer` with the bytes at `offset`.
    /// - Returns: 0, or why not: an errno, which is ENODATA where the file ends before.
    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Int32 {
        guard let start = buffer.baseAddress else { return 0 }
        var done = 0
        while done < buffer.count {
            let (place, overflow) = offset.addingReportingOverflow(UInt64(done))
            guard !overflow, place <= UInt64(Int64.max) else { return ENODATA }
            let count = pread(descriptor, start + done, buffer.count - done, off_t(place))
            if count > 0 {
                done += count
            } else if count == 0 {
                return ENODATA
            } else if errno != EINTR {
                return errno
            }
        }
        return 0
    }
}
