import BundledGuest
import Foundation
import GuestMemory
import TestSupport
import WindowsGuest

/// A kernel image of the bundled guest's, laid out in memory as its loader does, unrelocated.
struct KernelFile {
    static let names = ["O0", "O2", "Os"].flatMap { level in
        ["direct", "deep"].map { "ntoskrnl-\(level)-\($0).exe" }
    }
    static let base: UInt64 = 0xffff_f800_1000_0000

    let ram = SyntheticRAM(size: 4 << 20)
    let tables: PageTableBuilder
    let image: PEImage
    var memory: KernelMemory { KernelMemory(tables.memory) }

    init(_ name: String) throws {
        let file = [UInt8](try Data(contentsOf: URL(fileURLWithPath: try BundledGuestMachine.artifact(name))))
        func word(_ offset: Int) -> Int { (0..<4).reduce(0) { $0 | Int(file[offset + $1]) << (8 * $1) } }
        let header = word(0x3c)
        let size = word(header + 0x50)
        tables = PageTableBuilder(ram: ram)
        tables.mapNew(Self.base, pages: (size + 4095) / 4096, .kernelData)
        tables.write(Array(file[..<0x400]), at: Self.base)
        let sections = header + 24 + (word(header + 0x14) & 0xffff)
        for index in 0..<(word(header + 6) & 0xffff) {
            let row = sections + index * 40
            let raw = word(row + 20)
            let count = min(word(row + 16), (word(row + 8) + 4095) & ~4095)
            tables.write(Array(file[raw..<raw + count]), at: Self.base + UInt64(word(row + 12)))
        }
        image = try PEImage(at: GuestVirtualAddress(Self.base), in: KernelMemory(tables.memory))
    }
}
