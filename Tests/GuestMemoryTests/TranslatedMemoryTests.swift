import GuestMemory
import TestSupport
import Testing

@Suite("Virtual reads") struct TranslatedMemoryTests {
    let ram = SyntheticRAM(size: 1 << 20)
    let tables: PageTableBuilder
    let start: UInt64 = 0xffff_f800_0000_1000

    init() {
        tables = PageTableBuilder(ram: ram)
        // Two pages that adjoin for the guest, and do not in RAM.
        tables.mapNew(start, .kernelData)
        _ = ram.allocate()
        tables.mapNew(start + 4096, .kernelData)
    }

    @Test("Bytes and integers that cross a page come from both pages")
    func acrossPages() throws {
        let address = GuestVirtualAddress(start + 4093)
        tables.write([1, 2, 3, 4, 5, 6, 7, 8], at: address.rawValue)
        #expect(try tables.memory.bytes(at: address, count: 8) == [1, 2, 3, 4, 5, 6, 7, 8])
        #expect(try tables.memory.load(UInt64.self, at: address) == 0x0807_0605_0403_0201)
        #expect(try tables.memory.load(UInt16.self, at: address) == 0x0201)
    }

    @Test("A count beyond the maximum is refused before anything is allocated")
    func tooLong() {
        let address = GuestVirtualAddress(start)
        for count in [4097, UInt64.max] {
            #expect(throws: MemoryError.tooLong(address, count: count, maximum: 4096)) {
                try tables.memory.bytes(at: address, count: count, maximum: 4096)
            }
        }
        #expect(throws: MemoryError.tooLong(address, count: .max, maximum: .max)) {
            try tables.memory.bytes(at: address, count: .max, maximum: .max)
        }
        #expect(throws: Never.self) { try tables.memory.bytes(at: address, count: 4096, maximum: 4096) }
    }

    @Test("A range may not run over the end of the address space")
    func wrapAround() {
        let last = GuestVirtualAddress(0xffff_ffff_ffff_fff8)
        #expect(throws: MemoryError.notCanonical(GuestVirtualAddress(0))) {
            try tables.memory.bytes(at: last, count: 16)
        }
        #expect(throws: MemoryError.notPresent(last, entry: 0, level: 4)) {
            try tables.memory.bytes(at: last, count: 8)
        }
        let lowerHalf = GuestVirtualAddress(0x7fff_ffff_fff8)
        #expect(throws: MemoryError.notCanonical(GuestVirtualAddress(0x8000_0000_0000))) {
            try tables.memory.bytes(at: lowerHalf, count: 16)
        }
    }

    @Test("A partial read says which pages are missing and hands out none of their bytes")
    func partial() throws {
        tables.mapNew(start + 3 * 4096, .kernelData)
        tables.write(UInt32(0x1122_3344), at: start + 3 * 4096)
        let partial = try tables.memory.readPartial(
            at: GuestVirtualAddress(start), count: 5 * 4096, maximum: 1 << 20)
        #expect(partial.gaps.map(\.range) == [8192..<12288, 16384..<20480])
        #expect(!partial.isComplete)
        #expect(partial.load(UInt32.self, at: 3 * 4096) == 0x1122_3344)
        #expect(partial.load(UInt32.self, at: 12288 - 2) == nil)
        #expect(partial.load(UInt32.self, at: 8190) == nil)
        #expect(partial.load(UInt32.self, at: 8188) == 0)
        #expect(partial.load(UInt32.self, at: 20480) == nil)
        #expect(partial.load(UInt32.self, at: -1) == nil)
        #expect(partial.slice(at: 0, count: 8192)?.count == 8192)
        #expect(partial.slice(at: 0, count: Int.max) == nil)
        #expect(partial.gap(at: 0, count: 8192) == nil)
        #expect(partial.gap(at: 0, count: 8193) != nil)
    }

    @Test("A zero-terminated string ends at its zero, across pages, and must have one")
    func cString() throws {
        let address = GuestVirtualAddress(start + 4092)
        tables.write(Array("ntoskrnl.exe\0".utf8), at: address.rawValue)
        #expect(try tables.memory.cString(at: address, maximum: 64) == "ntoskrnl.exe")
        #expect(try tables.memory.cString(at: address, maximum: 12) == "ntoskrnl.exe")
        #expect(throws: MemoryError.tooLong(address, count: 12, maximum: 11)) {
            try tables.memory.cString(at: address, maximum: 11)
        }
    }

    @Test("A UNICODE_STRING is read by its length; one that is too long is refused")
    func unicodeString() throws {
        let text = Array("ntdll.dll".utf16)
        let address = GuestVirtualAddress(start)
        tables.write(UInt16(text.count * 2), at: start)
        tables.write(start + 0x100, at: start + 8)
        for (index, unit) in text.enumerated() { tables.write(unit, at: start + 0x100 + UInt64(index) * 2) }
        #expect(try tables.memory.unicodeString(at: address, maximum: 64) == "ntdll.dll")
        #expect(throws: MemoryError.tooLong(address, count: 18, maximum: 16)) {
            try tables.memory.unicodeString(at: address, maximum: 16)
        }
        tables.write(UInt16(0), at: start)
        #expect(try tables.memory.unicodeString(at: address, maximum: 64) == "")
    }
}
