import Glibc
import GuestMemory
import HypervisorInterface

/// Opens the file of a memory image.
enum ImageFile {
    /// - Throws: `cannotOpen` where there is none that can be read; `unusableImage` where it is no file of bytes.
    static func open(_ path: String) throws(HypervisorError) -> RAMFile {
        // A pipe without a writer would be waited for.
        let descriptor = Glibc.open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)
        guard descriptor >= 0 else { throw failure(errno, path) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            let code = errno
            close(descriptor)
            throw failure(code, path)
        }
        // From here on it closes the descriptor.
        let file = RAMFile(descriptor: descriptor, size: UInt64(max(0, status.st_size)))
        guard let kind = kind(status.st_mode) else {
            guard file.size > 0 else { throw .unusableImage(path: path, reason: ImageError.empty.description) }
            return file
        }
        throw .unusableImage(path: path, reason: ImageError.notAFile(kind).description)
    }

    /// What a path leads to; nil for a regular file.
    private static func kind(_ mode: mode_t) -> String? {
        switch mode & S_IFMT {
        case S_IFREG: nil
        case S_IFDIR: "a directory"
        case S_IFBLK: "a disk"
        case S_IFIFO: "a pipe, which can only be read once"
        default: "a device"
        }
    }

    private static func failure(_ code: Int32, _ path: String) -> HypervisorError {
        switch code {
        case ENOENT, ENOTDIR: .cannotOpen(path: path, reason: "no such file")
        case EACCES, EPERM:
            .cannotOpen(path: path, reason: "permission denied (QEMU makes dumps that only its own user can read)")
        case ENXIO:
            .unusableImage(path: path, reason: "it is a socket; a QEMU is reached by qemu:\(path)")
        default: .cannotOpen(path: path, reason: String(cString: strerror(code)))
        }
    }
}
