import Glibc

/// What a page of physical memory looks like: the processor's structures that memory is searched for.
///
/// A page that looks like one need not be one. Whoever uses it looks closer.
enum PageExamination {
    static let pageSize = 4096
    /// Bits 51 to 12 of an entry: a table's, or a page's, physical address.
    static let addressMask: UInt64 = 0x000f_ffff_ffff_f000

    /// Nothing but zeroes: most pages of a small guest are.
    static func isEmpty(_ page: UnsafeRawBufferPointer) -> Bool {
        guard let start = page.baseAddress, page.count == pageSize else { return false }
        return start.loadUnaligned(as: UInt64.self) == 0 && memcmp(start, start + 8, pageSize - 8) == 0
    }

    /// Whether a page, at this physical address, could be the root of 4- or 5-level page tables that maps itself in its
    /// upper half, as Windows has each of its roots do to reach the tables.
    static func mapsItself(_ page: UnsafeRawBufferPointer, at address: UInt64) -> Bool {
        // P set, PS clear.
        let wanted = address | 1
        for index in 256..<512 {
            let entry = page.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self)
            if entry & (addressMask | 0x81) == wanted { return true }
        }
        return false
    }

    /// The exceptions that a system handles for itself: #DE, #DB, NMI, #BP, #UD, #GP, #PF.
    static let vectors = [0, 1, 2, 3, 6, 13, 14]

    /// Calls `body` with each offset at which an interrupt table could start. Windows before 10 has it at any
    /// multiple of 16; one whose first gates lie on two pages is missed.
    ///
    /// Programs may execute INT3, and cause none of the other exceptions at will: that tells the table's start from
    /// the gates after it.
    static func forEachInterruptTable(in page: UnsafeRawBufferPointer, _ body: (Int) -> Void) {
        for offset in stride(from: 0, through: pageSize - 15 * 16, by: 16)
        where vectors.allSatisfy({ isGate(in: page, at: offset + $0 * 16, level: $0 == 3 ? 3 : 0) }) {
            body(offset)
        }
    }

    /// Whether there is a gate that code of this privilege level may call.
    private static func isGate(in page: UnsafeRawBufferPointer, at offset: Int, level: UInt64) -> Bool {
        page.loadUnaligned(fromByteOffset: offset, as: UInt64.self) >> 45 & 3 == level
            && handler(in: page, at: offset) != nil
    }

    /// Where a gate leads: a present interrupt or trap gate of long mode into the upper half. Intel SDM volume 3,
    /// 6.14.1.
    static func handler(in page: UnsafeRawBufferPointer, at offset: Int) -> UInt64? {
        let low = page.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
        // P set, S clear, type 14 or 15; bits 39 to 35 zero.
        guard low & 0x9ef8_0000_0000 == 0x8e00_0000_0000 else { return nil }
        let high = page.loadUnaligned(fromByteOffset: offset + 8, as: UInt64.self)
        // A code segment that is not null; the upper half, canonical; bits 12 to 8 of the last word zero.
        guard low & 0xfffc_0000 != 0, high & 0x1f00_ffff_8000 == 0xffff_8000 else { return nil }
        return low & 0xffff | (low >> 48) << 16 | (high & 0xffff_ffff) << 32
    }
}
