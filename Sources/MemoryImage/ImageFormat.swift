/// What a memory image's first bytes say of its format.
enum ImageFormat: Equatable {
    case elf
    /// Physical memory from address 0 on, with nothing around it: what no known format's mark is on.
    case raw

    /// The longest mark ends here, in bytes.
    static let markLength: UInt64 = 64

    private static let plain =
        "take a plain one, with QEMU's \"dump-guest-memory\" without a format, or \"virsh dump --memory-only\""

    /// Formats that hold a machine's memory, or may hold an image, and are not read: their marks, and what they are.
    private static let refused: [(mark: [UInt8], what: String)] = [
        // makedumpfile's IMPLEMENTATION: flattened, as QEMU writes it; and as it is after makedumpfile -R.
        (Array("makedumpfile".utf8), "it is a kdump file, flattened (\"makedumpfile\"): \(plain)"),
        (Array("KDUMP   ".utf8), "it is a compressed kdump file (\"KDUMP\"): \(plain)"),
        (Array("DISKDUMP".utf8), "it is a compressed diskdump file (\"DISKDUMP\"): \(plain)"),
        (Array("PAGEDU64".utf8), "it is a Windows crash dump (\"PAGEDU64\"): \(plain)"),
        (Array("PAGEDUMP".utf8), "it is a Windows crash dump (\"PAGEDUMP\"): \(plain)"),
        (Array("LibvirtQemudSave".utf8), "it is a saved machine of libvirt's: \(plain)"),
        (Array("LibvirtQemudPart".utf8), "it is a saved machine of libvirt's, not finished: \(plain)"),
        (Array("QEVM".utf8), "it is a saved machine of QEMU's (a migration stream): \(plain)"),
        ([0x45, 0x4d, 0x69, 0x4c], "it is a LiME file: take one in LiME's format \"padded\""),
        (Array("QFI\u{fb}".unicodeScalars.map { UInt8($0.value) }), "it is a qcow2 disk, no memory image"),
        ([0x1f, 0x8b], "it is compressed by gzip: decompress it first"),
        ([0x28, 0xb5, 0x2f, 0xfd], "it is compressed by zstd: decompress it first"),
        ([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0], "it is compressed by xz: decompress it first"),
        ([0x89, 0x4c, 0x5a, 0x4f, 0], "it is compressed by lzop: decompress it first"),
    ]

    /// - Parameter start: the file's first bytes, `markLength` of them or all there are.
    /// - Throws: `refusedFormat`.
    init(start: [UInt8]) throws(ImageError) {
        if start.starts(with: [0x7f, 0x45, 0x4c, 0x46]) {
            self = .elf
            return
        }
        for format in Self.refused where start.starts(with: format.mark) { throw .refusedFormat(format.what) }
        self = .raw
    }
}
