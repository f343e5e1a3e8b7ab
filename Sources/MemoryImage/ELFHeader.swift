/// The header of an ELF core for an x86 machine, of 32 or of 64 bits.
///
/// Format: System V ABI, "Object Files"; its values are those of `<elf.h>`.
struct ELFHeader: Equatable {
    /// The widths and places of what is read. The two classes hold the same, differently.
    enum Class: UInt8 {
        case elf32 = 1
        case elf64 = 2

        var headerSize: UInt64 { self == .elf64 ? 64 : 52 }
        var segmentHeaderSize: UInt16 { self == .elf64 ? 56 : 32 }
        var sectionHeaderSize: UInt64 { self == .elf64 ? 64 : 40 }

        /// An address or an offset, of the class's width.
        func word(_ bytes: [UInt8], at offset: Int) -> UInt64? {
            self == .elf64
                ? bytes.integer(UInt64.self, at: offset) : bytes.integer(UInt32.self, at: offset).map { UInt64($0) }
        }
    }

    enum Machine: UInt16 {
        /// EM_386. QEMU says so while no vCPU has entered long mode.
        case i386 = 3
        /// EM_X86_64.
        case amd64 = 62
    }

    /// QEMU's paging dumps of large guests have some hundred thousand.
    static let maximumSegments: UInt64 = 1 << 20

    var elfClass: Class
    var machine: Machine
    /// Where the table of program headers starts in the file, and its entries.
    var segmentsOffset: UInt64
    var segmentCount: UInt64

    /// - Throws: what makes the file no core of an x86 machine.
    init(_ file: some ImageBytes) throws(ImageError) {
        let identification = try file.bytes(at: 0, count: 16, "the ELF identification")
        guard let elfClass = Class(rawValue: identification[4]) else {
            throw .malformed("its ELF class is \(identification[4])")
        }
        guard identification[5] == 1 else {
            throw identification[5] == 2
                ? .otherMachine("big-endian") : .malformed("its byte order is \(identification[5])")
        }
        let bytes = try file.bytes(at: 0, count: elfClass.headerSize, "the ELF header")
        let is64 = elfClass == .elf64
        func half(_ offset32: Int, _ offset64: Int) -> UInt16 {
            bytes.integer(UInt16.self, at: is64 ? offset64 : offset32) ?? 0
        }
        func word(_ offset32: Int, _ offset64: Int) -> UInt64 {
            elfClass.word(bytes, at: is64 ? offset64 : offset32) ?? 0
        }
        let type = half(16, 16)
        guard type == 4 else { throw .notACore(type: type) }
        let number = half(18, 18)
        guard let machine = Machine(rawValue: number) else { throw .otherMachine("ELF machine \(number)") }
        // e_ehsize is not looked at: QEMU 7.2 writes 8 there.
        let count = half(44, 56)
        guard count != 0 else { throw .malformed("it has no program headers") }
        let width = half(42, 54)
        guard width == elfClass.segmentHeaderSize else { throw .malformed("program headers of \(width) bytes") }

        self.elfClass = elfClass
        self.machine = machine
        segmentsOffset = word(28, 32)
        segmentCount =
            try count == 0xffff
            ? Self.extendedCount(file, elfClass, sectionsOffset: word(32, 40), width: half(46, 58)) : UInt64(count)
        guard segmentCount <= Self.maximumSegments else {
            throw .tooLarge("program headers", count: segmentCount, maximum: Self.maximumSegments)
        }
    }

    /// PN_XNUM: there are more than fit the field. The first section header's sh_info has the number.
    private static func extendedCount(
        _ file: some ImageBytes, _ elfClass: Class, sectionsOffset: UInt64, width: UInt16
    ) throws(ImageError) -> UInt64 {
        guard sectionsOffset != 0, UInt64(width) == elfClass.sectionHeaderSize else {
            throw .malformed("the number of its program headers is in a section header that it has not got")
        }
        let section = try file.bytes(at: sectionsOffset, count: UInt64(width), "the first section header")
        return UInt64(section.integer(UInt32.self, at: elfClass == .elf64 ? 44 : 28) ?? 0)
    }
}
