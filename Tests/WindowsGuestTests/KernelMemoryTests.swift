import GuestMemory
import TestSupport
import Testing
import WindowsGuest

@Suite("Pages that Windows keeps though they are not present") struct KernelMemoryTests {
    let ram = SyntheticRAM(size: 1 << 20)
    let tables: PageTableBuilder
    let address: UInt64 = 0xffff_f800_0000_1000
    let page: UInt64
    var memory: KernelMemory { KernelMemory(tables.memory) }
    var guestAddress: GuestVirtualAddress { GuestVirtualAddress(address) }

    init() {
        tables = PageTableBuilder(ram: ram)
        page = tables.mapNew(address, .kernelData)
        ram.store(UInt64(0x1122_3344_5566_7788), at: page + 8)
    }

    func setEntry(_ entry: UInt64) { ram.store(entry, at: tables.entryAddress(of: address)) }

    @Test("The states of an entry are told apart as Windows tells them")
    func states() {
        #expect(NotPresentPage(entry: 0) == .unmapped)
        #expect(NotPresentPage(entry: 0x8a0) == .transition(GuestPhysicalAddress(0)))
        #expect(NotPresentPage(entry: 0x1234_58a0) == .transition(GuestPhysicalAddress(0x1234_5000)))
        // Prototype wins over transition; its address is sign-extended.
        #expect(NotPresentPage(entry: 0x8a01_2345_6780_0c00) == .prototype(GuestVirtualAddress(0xffff_8a01_2345_6780)))
        #expect(NotPresentPage(entry: 0xffff_ffff_0000_0480) == .addressDescriptor)
        #expect(NotPresentPage(entry: 0x0000_4321_0000_2080) == .pagefile(number: 2, offset: 0x4321))
        #expect(
            NotPresentPage(entry: 0x0000_4321_0000_2084, layout: .untilVersion1709)
                == .pagefile(number: 2, offset: 0x4321))
        #expect(NotPresentPage(entry: 0x80) == .demandZero)
        #expect(NotPresentPage.Layout(build: 7601) == .untilVersion1709)
        #expect(NotPresentPage.Layout(build: 17763) == .sinceVersion1803)
    }

    @Test("Only an absent entry of the last level is decoded")
    func level() {
        let error = MemoryError.notPresent(guestAddress, entry: 0x1234_58a0, level: 2)
        #expect(NotPresentPage(error) == nil)
        #expect(NotPresentPage(.notPresent(guestAddress, entry: 0, level: 1)) == .unmapped)
        #expect(NotPresentPage(.notCanonical(guestAddress)) == nil)
    }

    @Test("A page in transition is read from its frame, and has no rights")
    func transition() throws {
        setEntry(page | 0x8a0)
        #expect(try memory.load(UInt64.self, at: guestAddress + 8) == 0x1122_3344_5566_7788)
        #expect(try memory.translate(guestAddress).rights == [])
        #expect(throws: MemoryError.self) { try memory.hardware.load(UInt64.self, at: guestAddress) }
    }

    @Test("A frame number that the L1TF mitigation put above all RAM is brought back into it")
    func mitigated() throws {
        setEntry(page | 0x8a0 | 1 << 45)
        #expect(try memory.load(UInt64.self, at: guestAddress + 8) == 0x1122_3344_5566_7788)
    }

    @Test("A prototype entry that is valid, or in transition, leads to the page")
    func prototype() throws {
        let prototypes: UInt64 = 0xffff_8a01_2345_6000
        tables.mapNew(prototypes, .kernelData)
        setEntry((prototypes + 0x10) << 16 | 0x400)
        for entry in [page | 0x121, page | 0x8a0] {
            tables.write(entry, at: prototypes + 0x10)
            #expect(try memory.load(UInt64.self, at: guestAddress + 8) == 0x1122_3344_5566_7788)
        }
        // In a file, in a paging file, never touched, itself absent: not known yet.
        for entry in [0x8a01_0000_0000_0400, 0x4321_0000_0080, 0x80, 0] as [UInt64] {
            tables.write(entry, at: prototypes + 0x10)
            #expect(throws: MemoryError.self) { try memory.load(UInt64.self, at: guestAddress) }
        }
        tables.unmap(prototypes)
        #expect(throws: MemoryError.self) { try memory.load(UInt64.self, at: guestAddress) }
    }

    @Test("A prototype entry that leads to itself, or to the lower half, ends in an error")
    func hostilePrototype() {
        setEntry(address << 16 | 0x400)
        #expect(throws: MemoryError.self) { try memory.load(UInt64.self, at: guestAddress) }
        setEntry(0x0000_1234_5678_0400)
        #expect(throws: MemoryError.self) { try memory.load(UInt64.self, at: guestAddress) }
    }

    @Test("A page in a paging file is not present, with its entry in the error")
    func pagedOut() {
        setEntry(0x4321_0000_0080)
        #expect(throws: MemoryError.notPresent(guestAddress, entry: 0x4321_0000_0080, level: 1)) {
            try memory.load(UInt64.self, at: guestAddress)
        }
    }
}
