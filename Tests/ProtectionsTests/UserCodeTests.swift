import GuestMemory
import HypervisorInterface
import Protections
import TestSupport
import Testing
import WindowsGuest

@Suite("Protection of a process's code") struct UserCodeTests {
    private static let free: UInt64 = 0x5_0000_0000

    private func armed(_ name: String = "csrss.exe") throws -> ProtectedGuest {
        let guest = try ProtectedGuest()
        try guest.protections.arm([.userCode], processes: [name])
        #expect(try guest.protections.check() == [])
        return guest
    }

    @Test("A hook in its ntdll is reported, in another process's it is not; names are alike in any case")
    func hook() throws {
        let guest = try armed("CSRSS.exe")
        let place = guest.synthetic.ntdllAddress("NtClose")
        // A copy of the page, as copy-on-write makes it.
        for (index, expected) in [(1, 0), (2, 1)] {
            let tables = guest.synthetic.processes[index].tables
            let old = try tables.memory.translate(GuestVirtualAddress(place & ~0xfff)).physical.rawValue
            let frame = guest.guest.ram.allocate()
            for offset in stride(from: UInt64(0), to: 4096, by: 8) {
                guest.guest.ram.store(guest.guest.ram.load(UInt64.self, at: old + offset), at: frame + offset)
            }
            tables.map(place & ~0xfff, to: frame, .userCode)
            #expect(try guest.protections.check() == [])
            tables.write([0xe9, 1, 2, 3, 4], at: place)
            let found = try guest.protections.check()
            #expect(found.count == expected)
            if expected > 0 {
                #expect(found.first?.what == "5 bytes of csrss.exe's ntdll.dll (.text) changed")
                #expect(found.first?.address == GuestVirtualAddress(place))
            }
        }
        #expect(try guest.protections.check() == [])
    }

    @Test("New executable memory is reported as one, new data is not, and what is gone can come back")
    func region() throws {
        let guest = try armed()
        guest.process.tables.mapNew(Self.free + 0x100000, pages: 3, .userData)
        #expect(try guest.protections.check() == [])
        guest.process.tables.mapNew(Self.free, pages: 3, .userCode)
        let expected = Violation(
            protection: .userCode, what: "csrss.exe has 12 KiB of new executable memory",
            address: GuestVirtualAddress(Self.free))
        #expect(try guest.protections.check() == [expected])
        #expect(try guest.protections.check() == [])
        for page in 0..<3 { guest.process.tables.unmap(Self.free + UInt64(page) * 4096) }
        #expect(try guest.protections.check() == [])
        guest.process.tables.mapNew(Self.free, pages: 3, .userCode)
        #expect(try guest.protections.check() == [expected])
    }

    @Test("An executable page that is paged out counts, one that is only data does not")
    func absent() throws {
        let guest = try armed()
        let entry = guest.process.tables.entryAddress(of: Self.free)
        guest.guest.ram.store(UInt64(4 << 5), at: entry)
        #expect(try guest.protections.check() == [])
        guest.guest.ram.store(UInt64(6 << 5), at: entry)
        #expect(try guest.protections.check().count == 1)
    }

    @Test("Code of a module that becomes writable is reported")
    func writable() throws {
        let guest = try armed()
        let page = guest.synthetic.ntdllBase + 0x1000
        let entry = guest.process.tables.entryAddress(of: page)
        guest.guest.ram.store(guest.guest.ram.load(UInt64.self, at: entry) | 2, at: entry)
        #expect(
            try guest.protections.check().map(\.what)
                == ["a page of csrss.exe's ntdll.dll (.text) became writable"])
    }

    @Test("A module that is loaded later is no injected code")
    func module() throws {
        let guest = try armed()
        let base: UInt64 = 0x7ffa_5000_0000
        let image = SyntheticImage(
            name: "late.dll", size: 0x3000,
            sections: [
                .init(
                    name: ".text", rva: 0x1000, virtualSize: 0x1000,
                    characteristics: SyntheticImage.Section.code, contents: [0xc3])
            ], exportRVA: 0x2000)
        guest.process.tables.mapNew(base, .userData)
        guest.process.tables.mapNew(base + 0x1000, .userCode)
        guest.process.tables.mapNew(base + 0x2000, .userData)
        guest.process.tables.write(image.bytes(), at: base)
        // The program's entry becomes the new module's.
        guest.process.tables.write(base, at: guest.process.peb + 0x1000 + 0x30)
        #expect(try guest.protections.check() == [])
        guest.process.tables.write(UInt8(0xcc), at: base + 0x1000)
        #expect(try guest.protections.check().count == 1)
    }

    @Test("The end of the process is no violation; the next of its name is protected")
    func lifetime() throws {
        let guest = try armed()
        let links = guest.process.object + UInt64(SyntheticKernel.Layout.activeProcessLinks)
        let previous = guest.synthetic.processes[1].object + UInt64(SyntheticKernel.Layout.activeProcessLinks)
        let head = guest.address("PsActiveProcessHead")
        guest.synthetic.write(head, at: previous)
        guest.synthetic.write(previous, at: head + 8)
        guest.process.tables.write(UInt8(0xcc), at: guest.synthetic.ntdllAddress("NtClose"))
        #expect(try guest.protections.check() == [])
        guest.synthetic.write(UInt64(0x400), at: guest.process.object + UInt64(SyntheticKernel.Layout.uniqueProcessID))
        guest.synthetic.write(links, at: previous)
        guest.synthetic.write(links, at: head + 8)
        #expect(try guest.protections.check() == [])
        guest.process.tables.write(UInt8(0xcd), at: guest.synthetic.ntdllAddress("NtClose"))
        #expect(try guest.protections.check().count == 1)
    }

    @Test("A process that does not run yet, and no process at all")
    func names() throws {
        let guest = try ProtectedGuest()
        #expect(throws: ProtectionError.noProcess) { try guest.protections.arm([.userCode]) }
        try guest.protections.arm([.userCode], processes: ["nobody.exe"])
        #expect(try guest.protections.check() == [])
        #expect(guest.protections.armed == [.userCode])
        try guest.protections.arm([.userCode], processes: ["csrss.exe"])
        guest.process.tables.write(UInt8(0xcc), at: guest.synthetic.ntdllAddress("NtClose"))
        #expect(try guest.protections.check().count == 1)
    }

    @Test("Slices that are smaller than the page tables get through a process all the same")
    func slices() throws {
        let guest = try armed()
        guest.process.tables.mapNew(Self.free, .userCode)
        guest.process.tables.write(UInt8(0xcc), at: guest.synthetic.ntdllAddress("NtClose"))
        var found: [String] = []
        for _ in 0..<40 { found += try guest.protections.check(budget: 1).map(\.what) }
        #expect(
            found == [
                "csrss.exe has 4 KiB of new executable memory", "1 byte of csrss.exe's ntdll.dll (.text) changed",
            ])
    }

    @Test("Page tables that are their own children end")
    func recursive() throws {
        let guest = try armed()
        let root = guest.process.tables.root
        for index in UInt64(1)..<200 { guest.guest.ram.store(root | 7, at: root + index * 8) }
        // More than can be looked at, and executable: said once.
        #expect(try !guest.protections.check().isEmpty)
        #expect(try guest.protections.check() == [])
    }

    @Test("Loader data that make no sense end")
    func hostileLoaderData() throws {
        for value: UInt64 in [0, 1, .max, 0x7fff_ffff_fff8, 0xffff_8000_0000_0000] {
            let guest = try armed()
            guest.process.tables.write(value, at: guest.process.peb + 0x18)
            guest.process.tables.mapNew(Self.free, .userCode)
            #expect(try guest.protections.check().count == 1)
        }
        let guest = try armed()
        guest.process.tables.write(guest.process.peb + 0x1000, at: guest.process.peb + 0x1000)
        guest.process.tables.mapNew(Self.free, .userCode)
        #expect(try guest.protections.check().count == 1)
    }
}
