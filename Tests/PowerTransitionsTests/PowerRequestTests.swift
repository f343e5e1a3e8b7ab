import GuestMemory
import PowerTransitions
import TestSupport
import Testing
import X86

@Suite("Capturing a request") struct PowerRequestTests {
    @Test("On x64 the low halves of rcx, rdx and r8 are the arguments, whatever the upper halves hold")
    func x64() {
        var registers = Registers()
        registers.rcx = 0xffff_ffff_0000_0005
        registers.rdx = 0x0000_0001_0000_0006
        registers.r8 = 0x8000_0000_c000_0004
        registers.r9 = 1
        registers.rax = 2
        #expect(PowerRequest(x64: registers) == PowerRequest(action: 5, minimumState: 6, flags: 0xc000_0004))
        registers.rcx = UInt64(UInt32.max)
        #expect(PowerRequest(x64: registers).action == .max)
    }

    enum Paging: CaseIterable { case legacy, pae }

    /// A 32-bit address space, and how to map one more page of it.
    struct Space {
        var ram: SyntheticRAM
        var memory: VirtualMemory
        var map: (UInt32) -> UInt64

        static func make(_ paging: Paging) -> Space { paging == .pae ? pae() : legacy() }

        /// Page tables of 32-bit entries (Intel SDM volume 3, 4.3).
        static func legacy() -> Space {
            let ram = SyntheticRAM(size: 1 << 20)
            let directory = ram.allocate()
            let map = { (address: UInt32) -> UInt64 in
                let slot = directory + UInt64(address >> 22) * 4
                if ram.load(UInt32.self, at: slot) == 0 { ram.store(UInt32(ram.allocate()) | 3, at: slot) }
                let table = UInt64(ram.load(UInt32.self, at: slot) & ~0xfff)
                let page = ram.allocate()
                ram.store(UInt32(page) | 3, at: table + UInt64(address >> 12 & 1023) * 4)
                return page
            }
            let space = AddressSpace(root: directory, mode: .legacy32(largePages: true))
            return Space(ram: ram, memory: VirtualMemory(physical: ram.physical, space: space), map: map)
        }

        /// PAE page tables (Intel SDM volume 3, 4.4).
        static func pae() -> Space {
            let ram = SyntheticRAM(size: 1 << 20)
            let pointers = ram.allocate()
            for index in 0..<4 as Range<UInt64> { ram.store(ram.allocate() | 1, at: pointers + index * 8) }
            let map = { (address: UInt32) -> UInt64 in
                let directory = ram.load(UInt64.self, at: pointers + UInt64(address >> 30) * 8) & ~0xfff
                let slot = directory + UInt64(address >> 21 & 511) * 8
                if ram.load(UInt64.self, at: slot) == 0 { ram.store(ram.allocate() | 3, at: slot) }
                let table = ram.load(UInt64.self, at: slot) & ~0xfff
                let page = ram.allocate()
                ram.store(page | 3, at: table + UInt64(address >> 12 & 511) * 8)
                return page
            }
            let space = AddressSpace(root: pointers, mode: .pae)
            return Space(ram: ram, memory: VirtualMemory(physical: ram.physical, space: space), map: map)
        }
    }

    static func stack(_ esp: UInt64) -> Registers {
        var registers = Registers()
        registers.rsp = esp
        // What would be read on x64.
        registers.rcx = 1
        registers.rdx = 2
        registers.r8 = 3
        return registers
    }

    static let request = PowerRequest(action: 3, minimumState: 5, flags: 0xc000_0004)

    @Test("Arguments that could not be read reject nothing: the call may be a request")
    func unreadable() {
        #expect(PowerRequest.unreadable.rejection == nil && PowerRequest.unreadable.transition == .unknown)
        #expect(PowerRequest(action: 0, minimumState: 0, flags: 0).rejection != nil)
    }

    @Test("On x86 the three words above the return address are the arguments", arguments: Paging.allCases)
    func x86(paging: Paging) throws {
        let space = Space.make(paging)
        let page = space.map(0x8f1a_2000)
        for (index, value) in [0x1234_5678, 3, 5, 0xc000_0004, 99].enumerated() {
            space.ram.store(UInt32(value), at: page + 0xf00 + UInt64(index) * 4)
        }
        #expect(try PowerRequest(x86: Self.stack(0x8f1a_2f00), memory: space.memory) == Self.request)
        // The upper half of RSP is not part of ESP.
        #expect(try PowerRequest(x86: Self.stack(0xffff_ffff_8f1a_2f00), memory: space.memory) == Self.request)
    }

    @Test("On x86 arguments may lie on two pages, that do not adjoin in RAM", arguments: Paging.allCases)
    func acrossPages(paging: Paging) throws {
        let space = Space.make(paging)
        let upper = space.map(0x8f1a_3000)
        _ = space.map(0x9000_0000)
        let lower = space.map(0x8f1a_2000)
        space.ram.store(UInt32(3), at: lower + 0xffc)
        space.ram.store(UInt32(5), at: upper)
        space.ram.store(UInt32(0xc000_0004), at: upper + 4)
        #expect(try PowerRequest(x86: Self.stack(0x8f1a_2ff8), memory: space.memory) == Self.request)
    }

    @Test("On x86 the stack wraps at 4 GiB", arguments: Paging.allCases)
    func wraps(paging: Paging) throws {
        let space = Space.make(paging)
        let top = space.map(0xffff_f000)
        let bottom = space.map(0)
        space.ram.store(UInt32(3), at: top + 0xffc)
        space.ram.store(UInt32(5), at: bottom)
        space.ram.store(UInt32(0xc000_0004), at: bottom + 4)
        #expect(try PowerRequest(x86: Self.stack(0xffff_fff8), memory: space.memory) == Self.request)
        space.ram.store([UInt8](repeating: 0, count: 4), at: top + 0xffc)
        space.ram.store(UInt32(3), at: bottom)
        space.ram.store(UInt32(5), at: bottom + 4)
        space.ram.store(UInt32(0xc000_0004), at: bottom + 8)
        #expect(try PowerRequest(x86: Self.stack(0xffff_fffc), memory: space.memory) == Self.request)
    }

    @Test("On x86 a stack that cannot be read, or not wholly, is an error", arguments: Paging.allCases)
    func unreadable(paging: Paging) throws {
        let space = Space.make(paging)
        _ = space.map(0x8f1a_2000)
        let absent = try #require(throws: MemoryError.self) {
            try PowerRequest(x86: Self.stack(0x9000_0000), memory: space.memory)
        }
        #expect(absent.isNotPresent)
        // The last argument is on the next page, which is not there.
        #expect(throws: MemoryError.self) { try PowerRequest(x86: Self.stack(0x8f1a_2ff4), memory: space.memory) }
        #expect(throws: Never.self) { try PowerRequest(x86: Self.stack(0x8f1a_2ff0), memory: space.memory) }
    }
}
