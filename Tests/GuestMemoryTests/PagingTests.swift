import GuestMemory
import TestSupport
import Testing
import X86

@Suite("Page walks, 4 and 5 levels") struct LongModePagingTests {
    static let kernelAddress: UInt64 = 0xffff_f800_1234_5000

    @Test("A 4 KiB page is found with the rights that all levels allow", arguments: [4, 5])
    func smallPage(levels: Int) throws {
        let ram = SyntheticRAM(size: 1 << 20)
        let tables = PageTableBuilder(ram: ram, levels: levels)
        let page = tables.mapNew(Self.kernelAddress, [.present, .writable, .global])
        let translation = try tables.memory.translate(GuestVirtualAddress(Self.kernelAddress + 0x123))
        #expect(translation.physical == GuestPhysicalAddress(page + 0x123))
        #expect(translation.pageSize == 4096)
        #expect(translation.rights == [.writable, .executable, .global])
        #expect(translation.bytesToPageEnd == 4096 - 0x123)
    }

    @Test("A right that one upper level withholds is not there", arguments: [2, 3, 4])
    func upperLevelRestricts(level: Int) throws {
        let ram = SyntheticRAM(size: 1 << 20)
        let tables = PageTableBuilder(ram: ram)
        tables.mapNew(Self.kernelAddress, [.present, .writable, .user])
        let location = tables.entryAddress(of: Self.kernelAddress, level: level)
        let address = GuestVirtualAddress(Self.kernelAddress)
        #expect(try tables.memory.translate(address).rights == [.writable, .user, .executable])
        ram.store(ram.load(UInt64.self, at: location) & ~0x6 | 1 << 63, at: location)
        #expect(try tables.memory.translate(address).rights == [])
    }

    @Test("2 MiB and 1 GiB pages are found, with the offset inside them", arguments: [2, 3])
    func largePages(level: Int) throws {
        let ram = SyntheticRAM(size: 1 << 20)
        let tables = PageTableBuilder(ram: ram)
        let size = UInt64(4096) << (9 * UInt64(level - 1))
        tables.map(0xffff_f800_0000_0000, to: size, [.present, .user, .global], level: level)
        let translation = try tables.memory.translate(GuestVirtualAddress(0xffff_f800_0000_0000 + size - 8))
        #expect(translation.physical == GuestPhysicalAddress(size + size - 8))
        #expect(translation.pageSize == size)
        #expect(translation.rights == [.user, .executable, .global])
        #expect(translation.bytesToPageEnd == 8)
    }

    @Test("Bit 63 forbids execution where EFER.NXE is set, and is reserved where it is not")
    func executeDisable() throws {
        let ram = SyntheticRAM(size: 1 << 20)
        let tables = PageTableBuilder(ram: ram)
        tables.mapNew(Self.kernelAddress, [.present, .noExecute])
        let address = GuestVirtualAddress(Self.kernelAddress)
        #expect(try !tables.memory.translate(address).isExecutable)
        let without = VirtualMemory(
            physical: ram.physical,
            space: AddressSpace(root: tables.root, mode: .fourLevel, executeDisableEnabled: false))
        #expect(throws: MemoryError.self) { try without.translate(address) }
    }

    @Test("An absent entry is reported with its level and value", arguments: [1, 2, 3, 4])
    func absent(level: Int) throws {
        let ram = SyntheticRAM(size: 1 << 20)
        let tables = PageTableBuilder(ram: ram)
        tables.mapNew(Self.kernelAddress, .kernelData)
        ram.store(UInt64(0xabc0), at: tables.entryAddress(of: Self.kernelAddress, level: level))
        let address = GuestVirtualAddress(Self.kernelAddress)
        #expect(throws: MemoryError.notPresent(address, entry: 0xabc0, level: level)) {
            try tables.memory.translate(address)
        }
    }

    @Test("Entries with reserved bits are errors: PS above level 3, low address bits of large pages")
    func reserved() throws {
        let ram = SyntheticRAM(size: 1 << 20)
        let tables = PageTableBuilder(ram: ram)
        tables.mapNew(Self.kernelAddress, .kernelData)
        let address = GuestVirtualAddress(Self.kernelAddress)
        for (level, bits) in [(4, UInt64(1) << 7), (3, 1 << 7 | 1 << 13), (2, 1 << 7 | 1 << 13)] {
            let location = tables.entryAddress(of: Self.kernelAddress, level: level)
            let good = ram.load(UInt64.self, at: location)
            ram.store(good & 0xfff | bits, at: location)
            #expect(throws: MemoryError.reservedBits(address, entry: good & 0xfff | bits, level: level)) {
                try tables.memory.translate(address)
            }
            ram.store(good, at: location)
        }
        #expect(throws: Never.self) { try tables.memory.translate(address) }
    }

    @Test("PAT in a large page, bit 12, is no reserved bit and no part of the address")
    func largePagePAT() throws {
        let ram = SyntheticRAM(size: 1 << 20)
        let tables = PageTableBuilder(ram: ram)
        tables.map(0xffff_f800_0000_0000, to: 0x20_0000 | 1 << 12, [.present], level: 2)
        let translation = try tables.memory.translate(GuestVirtualAddress(0xffff_f800_0000_1234))
        #expect(translation.physical == GuestPhysicalAddress(0x20_1234))
    }

    @Test("Addresses that are not canonical are refused, those at both edges are walked")
    func canonical() {
        #expect(!PagingMode.fourLevel.isCanonical(GuestVirtualAddress(0x0000_8000_0000_0000)))
        #expect(!PagingMode.fourLevel.isCanonical(GuestVirtualAddress(0xffff_7fff_ffff_ffff)))
        #expect(PagingMode.fourLevel.isCanonical(GuestVirtualAddress(0x0000_7fff_ffff_ffff)))
        #expect(PagingMode.fourLevel.isCanonical(GuestVirtualAddress(0xffff_8000_0000_0000)))
        #expect(PagingMode.fiveLevel.isCanonical(GuestVirtualAddress(0x0000_8000_0000_0000)))
        #expect(!PagingMode.fiveLevel.isCanonical(GuestVirtualAddress(0x0100_0000_0000_0000)))
        #expect(!PagingMode.legacy32(largePages: true).isCanonical(GuestVirtualAddress(1 << 32)))
        let tables = PageTableBuilder(ram: SyntheticRAM(size: 1 << 16))
        let address = GuestVirtualAddress(0x0000_8000_0000_0000)
        #expect(throws: MemoryError.notCanonical(address)) { try tables.memory.translate(address) }
    }

    @Test("A table that refers to itself ends in its own pages, as Windows' self-map does")
    func selfReference() throws {
        let ram = SyntheticRAM(size: 1 << 16)
        let tables = PageTableBuilder(ram: ram)
        let index: UInt64 = 0x1ed
        ram.store(tables.root | 0x63, at: tables.root + index * 8)
        let selfMap = 0xffff_0000_0000_0000 | index << 39 | index << 30 | index << 21 | index << 12
        let translation = try tables.memory.translate(GuestVirtualAddress(selfMap + index * 8))
        #expect(translation.physical == GuestPhysicalAddress(tables.root + index * 8))
    }

    @Test("A table outside RAM is an error that names its address")
    func tableOutsideRAM() {
        let ram = SyntheticRAM(size: 1 << 16)
        let tables = PageTableBuilder(ram: ram)
        ram.store(UInt64(0x7_0000_0000 | 1), at: tables.root)
        #expect(throws: MemoryError.notRAM(GuestPhysicalAddress(0x7_0000_0000))) {
            try tables.memory.translate(GuestVirtualAddress(0))
        }
        let nowhere = VirtualMemory(
            physical: ram.physical, space: AddressSpace(root: UInt64.max, mode: .fourLevel))
        #expect(throws: MemoryError.self) { try nowhere.translate(GuestVirtualAddress(0)) }
    }

    @Test("The low bits of CR3, a PCID among them, are no part of the table's address")
    func pcid() throws {
        let ram = SyntheticRAM(size: 1 << 20)
        let tables = PageTableBuilder(ram: ram)
        tables.mapNew(Self.kernelAddress, .kernelData)
        let space = AddressSpace(root: tables.root | 0x8000_0000_0000_0002, mode: .fourLevel)
        let memory = VirtualMemory(physical: ram.physical, space: space)
        #expect(throws: Never.self) { try memory.translate(GuestVirtualAddress(Self.kernelAddress)) }
    }
}

@Suite("Page walks, 32-bit and PAE") struct ProtectedModePagingTests {
    @Test("A 4 KiB page is found in 32-bit paging")
    func legacySmall() throws {
        let ram = SyntheticRAM(size: 1 << 16)
        let (directory, table) = (ram.allocate(), ram.allocate())
        ram.store(UInt32(table | 0x7), at: directory + 0x201 * 4)
        ram.store(UInt32(0x5000 | 0x103), at: table + 0x13 * 4)
        let memory = VirtualMemory(
            physical: ram.physical, space: AddressSpace(root: directory | 0x18, mode: .legacy32(largePages: true)))
        let translation = try memory.translate(GuestVirtualAddress(0x8041_3abc))
        #expect(translation.physical == GuestPhysicalAddress(0x5abc))
        #expect(translation.rights == [.writable, .executable, .global])
    }

    @Test("A 4 MiB page takes bits 39 to 32 of its address from PSE-36's bits; without PSE it is a table")
    func legacyLarge() throws {
        let ram = SyntheticRAM(size: 1 << 16)
        let directory = ram.allocate()
        // Bits 20 to 13 hold 0x5a: the page starts at 0x5a_0040_0000.
        ram.store(UInt32(0x0040_0000 | 0x5a << 13 | 0x85), at: directory + 0x200 * 4)
        func memory(_ largePages: Bool) -> VirtualMemory {
            VirtualMemory(
                physical: ram.physical, space: AddressSpace(root: directory, mode: .legacy32(largePages: largePages)))
        }
        let translation = try memory(true).translate(GuestVirtualAddress(0x8012_3456))
        #expect(translation.physical == GuestPhysicalAddress(0x5a_0052_3456))
        #expect(translation.pageSize == 4 << 20)
        #expect(translation.rights == [.user, .executable])
        #expect(throws: MemoryError.notRAM(GuestPhysicalAddress(0x4b_4000 + 0x123 * 4))) {
            try memory(false).translate(GuestVirtualAddress(0x8012_3456))
        }
        // Bit 21 is reserved.
        ram.store(UInt32(0x0060_0081), at: directory + 0x200 * 4)
        #expect(throws: MemoryError.self) { try memory(true).translate(GuestVirtualAddress(0x8012_3456)) }
    }

    @Test("PAE paging finds 4 KiB and 2 MiB pages through four pointers at a 32-byte aligned address")
    func pae() throws {
        let ram = SyntheticRAM(size: 1 << 16)
        let (pointers, directory, table) = (ram.allocate(), ram.allocate(), ram.allocate())
        let root = pointers + 0x60
        ram.store(directory | 1, at: root + 2 * 8)
        ram.store(table | 0x7, at: directory + 8)
        ram.store(UInt64(0x20_0000_0000) | 1 << 63 | 0x83, at: directory + 2 * 8)
        ram.store(UInt64(0x6000 | 0x5), at: table + 0x1ff * 8)
        let memory = VirtualMemory(physical: ram.physical, space: AddressSpace(root: root, mode: .pae))
        let small = try memory.translate(GuestVirtualAddress(0x803f_f010))
        #expect(small.physical == GuestPhysicalAddress(0x6010))
        #expect(small.rights == [.user, .executable])
        let large = try memory.translate(GuestVirtualAddress(0x8040_0010))
        #expect(large.physical == GuestPhysicalAddress(0x20_0000_0010))
        #expect(large.pageSize == 2 << 20)
        #expect(large.rights == [.writable])
        #expect(throws: MemoryError.notPresent(GuestVirtualAddress(0x10), entry: 0, level: 3)) {
            try memory.translate(GuestVirtualAddress(0x10))
        }
        ram.store(directory | 3, at: root)
        #expect(throws: MemoryError.reservedBits(GuestVirtualAddress(0x10), entry: directory | 3, level: 3)) {
            try memory.translate(GuestVirtualAddress(0x10))
        }
    }

    @Test("The control registers select the paging mode")
    func modes() {
        func mode(cr0: UInt64, cr4: UInt64, efer: UInt64) -> PagingMode {
            PagingMode(ControlRegisters(cr0: cr0, cr3: 0, cr4: cr4, efer: efer))
        }
        let paging: UInt64 = 1 << 31
        #expect(mode(cr0: 0, cr4: 0x20, efer: 0x500) == .none)
        #expect(mode(cr0: paging, cr4: 0, efer: 0) == .legacy32(largePages: false))
        #expect(mode(cr0: paging, cr4: 0x10, efer: 0) == .legacy32(largePages: true))
        #expect(mode(cr0: paging, cr4: 0x30, efer: 0x100) == .pae)
        #expect(mode(cr0: paging, cr4: 0x20, efer: 0x500) == .fourLevel)
        #expect(mode(cr0: paging, cr4: 0x1020, efer: 0x500) == .fiveLevel)
    }

    @Test("Without paging an address is its own translation, within 32 bits")
    func noPaging() throws {
        let ram = SyntheticRAM(size: 1 << 16)
        let memory = VirtualMemory(physical: ram.physical, space: AddressSpace(root: 0, mode: .none))
        #expect(try memory.translate(GuestVirtualAddress(0x1234)).physical == GuestPhysicalAddress(0x1234))
        #expect(throws: MemoryError.self) { try memory.translate(GuestVirtualAddress(1 << 32)) }
    }
}

@Suite("Hostile page tables") struct HostilePagingTests {
    @Test("Random garbage as page tables never traps, in any mode", arguments: [1, 2, 3, 4] as [UInt64])
    func fuzz(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let ram = SyntheticRAM(size: 1 << 18)
        for offset in stride(from: 0, to: 1 << 18, by: 8) {
            // Half of the entries look like tables inside RAM, so that walks get deep.
            let word = random.next()
            ram.store(word & 1 == 0 ? word : word & 0xfff0_0000_0003_ffff | 1, at: UInt64(offset))
        }
        let modes: [PagingMode] = [
            .none, .legacy32(largePages: true), .legacy32(largePages: false), .pae, .fourLevel, .fiveLevel,
        ]
        var translated = 0
        var refused = 0
        for _ in 0..<5_000 {
            let mode = modes.randomElement(using: &random)!
            let memory = VirtualMemory(
                physical: ram.physical,
                space: AddressSpace(
                    root: random.next() & (random.next() & 1 == 0 ? 0x3ffff : .max), mode: mode,
                    executeDisableEnabled: random.next() & 1 == 0))
            let shift = random.next() & 63
            let address = GuestVirtualAddress(UInt64(bitPattern: Int64(bitPattern: random.next()) >> Int64(shift)))
            do {
                _ = try memory.translate(address)
                translated += 1
                _ = try? memory.bytes(at: address, count: random.next() & 0x3fff)
                _ = try? memory.load(UInt64.self, at: address)
                _ = try? memory.unicodeString(at: address, maximum: 512)
                _ = try? memory.cString(at: address, maximum: 512)
                _ = try? memory.readPartial(at: address, count: random.next() & 0xffff, maximum: 1 << 16)
            } catch {
                refused += 1
            }
        }
        #expect(translated > 0 && refused > 0)
    }
}
