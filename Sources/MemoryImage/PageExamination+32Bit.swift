/// The structures of 32-bit systems.
extension PageExamination {
    /// Where a 32-bit Windows maps its page tables, with PAE and without (public symbols: PTE_BASE).
    private static let tableBase: UInt32 = 0xc000_0000

    /// Whether a page, at this physical address, could be a page directory of 32-bit paging that maps itself where
    /// Windows has it.
    static func isDirectory(_ page: UnsafeRawBufferPointer, at address: UInt64) -> Bool {
        guard address >> 32 == 0 else { return false }
        let entry = page.loadUnaligned(fromByteOffset: Int(tableBase >> 22) * 4, as: UInt32.self)
        // P set, PS clear.
        return entry & 0xffff_f081 == UInt32(address) | 1
    }

    /// Calls `body` with each offset at which the four pointers of PAE could lie, whose last leads to this page
    /// directory; Windows has all four of them. Intel SDM volume 3, 4.4.1.
    static func forEachPointerTable(in page: UnsafeRawBufferPointer, _ body: (_ offset: Int, _ last: UInt64) -> Void) {
        for offset in stride(from: 0, to: pageSize, by: 32) {
            var seen: (UInt64, UInt64, UInt64) = (0, 0, 0)
            var last: UInt64 = 0
            var isTable = true
            for index in 0..<4 where isTable {
                let entry = page.loadUnaligned(fromByteOffset: offset + index * 8, as: UInt64.self)
                last = entry & addressMask
                // P set; bits 1, 2, 6 to 8 and 52 to 63 zero (5 is too, but where QEMU's TCG has set it). No two of them
                // lead to the same directory.
                isTable =
                    entry & 0xfff0_0000_0000_01c7 == 1 && last != 0 && last != seen.0 && last != seen.1
                    && last != seen.2
                seen = (seen.1, seen.2, last)
            }
            if isTable { body(offset, last) }
        }
    }

    /// Whether a page, at this physical address, could be the last of PAE's four directories: Windows maps all four
    /// in it, one after the other, and so it maps itself.
    static func isLastDirectory(_ page: UnsafeRawBufferPointer, at address: UInt64) -> Bool {
        let entry = page.loadUnaligned(fromByteOffset: 3 * 8, as: UInt64.self)
        return entry & (addressMask | 0x81) == address | 1
    }

    /// The exceptions that a 32-bit Windows handles through gates into its code: of those that are looked at in 64-bit
    /// systems, all but NMI, which has a task gate.
    static let vectors32 = [0, 1, 3, 6, 13, 14]

    /// Calls `body` with each offset at which an interrupt table of 32-bit gates could start.
    ///
    /// INT 2Eh, the system call, is for programs as INT3 is: behind another gate no table starts.
    static func forEachInterruptTable32(in page: UnsafeRawBufferPointer, _ body: (Int) -> Void) {
        for offset in stride(from: 0, through: pageSize - 15 * 8, by: 8)
        where (offset == 0 || handler32(in: page, at: offset - 8) == nil)
            && vectors32.allSatisfy({ isGate32(in: page, at: offset + $0 * 8, level: $0 == 3 ? 3 : 0) })
        {
            body(offset)
        }
    }

    private static func isGate32(in page: UnsafeRawBufferPointer, at offset: Int, level: UInt64) -> Bool {
        page.loadUnaligned(fromByteOffset: offset, as: UInt64.self) >> 45 & 3 == level
            && handler32(in: page, at: offset) != nil
    }

    /// Where a gate leads: a present 32-bit interrupt or trap gate into the upper half. Intel SDM volume 3, 6.11.
    static func handler32(in page: UnsafeRawBufferPointer, at offset: Int) -> UInt64? {
        let gate = page.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
        // P set, S clear, type 14 or 15; bits 39 to 32 zero; a code segment that is not null.
        guard gate & 0x9eff_0000_0000 == 0x8e00_0000_0000, gate & 0xfffc_0000 != 0, gate >> 63 == 1 else { return nil }
        return gate & 0xffff | (gate >> 48) << 16
    }
}
