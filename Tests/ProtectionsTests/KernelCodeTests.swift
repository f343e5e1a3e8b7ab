import GuestMemory
import HypervisorInterface
import Protections
import TestSupport
import Testing
import WindowsGuest

@Suite("Protection of the kernel's code") struct KernelCodeTests {
    private func armed() throws -> ProtectedGuest {
        let guest = try ProtectedGuest()
        try guest.protections.arm([.kernelCode])
        #expect(try guest.protections.check() == [])
        return guest
    }

    @Test("A changed byte is reported where it is, once; again when it changes again, anew when it comes back")
    func content() throws {
        let guest = try armed()
        let place = guest.address("KeBugCheckEx")
        guest.synthetic.write(UInt8(0xcc), at: place)
        let expected = Violation(
            protection: .kernelCode, what: "1 byte of ntoskrnl.exe's .text changed",
            address: GuestVirtualAddress(place))
        #expect(try guest.protections.check() == [expected])
        #expect(try guest.protections.check() == [])
        guest.synthetic.write([UInt8](repeating: 0xcd, count: 2), at: place)
        #expect(try guest.protections.check().map(\.what) == ["2 bytes of ntoskrnl.exe's .text changed"])
        guest.synthetic.write([0x33, 0xc0], at: place)
        #expect(try guest.protections.check() == [])
        guest.synthetic.write(UInt8(0xcc), at: place)
        #expect(try guest.protections.check() == [expected])
    }

    @Test("Constants and the zeroes behind code are protected, data is not")
    func sections() throws {
        let guest = try armed()
        guest.synthetic.write(UInt64(5), at: guest.address("NtBuildNumber") + 0x10)
        guest.synthetic.write(UInt64(5), at: guest.address("PsLoadedModuleList") + 0x400)
        #expect(try guest.protections.check() == [])
        guest.synthetic.write(UInt8(1), at: guest.synthetic.base + 0x1fff)
        guest.synthetic.write(UInt8(1), at: guest.synthetic.base + 0x7fff)
        #expect(
            try guest.protections.check().map(\.what)
                == ["1 byte of ntoskrnl.exe's .text changed", "1 byte of ntoskrnl.exe's .rdata changed"])
    }

    @Test("A page of a section that stays is reported when its frame changes, one that can be paged is not")
    func frames() throws {
        let guest = try armed()
        try guest.remap(guest.address("NtSetSystemPowerState"))
        #expect(try guest.protections.check() == [])
        let old = try guest.physical(guest.synthetic.base + 0x1000)
        let new = try guest.remap(guest.synthetic.base + 0x1000)
        let found = try guest.protections.check()
        #expect(found.count == 1)
        #expect(
            found.first?.what
                == "a page of ntoskrnl.exe's .text is mapped elsewhere: moved from \(old) to "
                + "\(GuestPhysicalAddress(new))")
        #expect(try guest.protections.check() == [])
    }

    @Test("A pageable page that comes back with other contents is reported; absent, it is not")
    func paged() throws {
        let guest = try armed()
        let page = guest.address("NtSetSystemPowerState") & ~0xfff
        let entry = guest.synthetic.entry(of: page)
        guest.synthetic.setEntry(of: page, to: 0x80)
        #expect(try guest.protections.check() == [])
        // In transition: still to be read.
        guest.synthetic.setEntry(of: page, to: entry & ~1 | 1 << 11)
        #expect(try guest.protections.check() == [])
        let physical = try guest.physical(page)
        guest.guest.ram.store(UInt8(0xcc), at: physical.rawValue)
        #expect(try guest.protections.check().map(\.what) == ["1 byte of ntoskrnl.exe's PAGELK changed"])
        guest.synthetic.setEntry(of: page, to: entry)
        #expect(try guest.protections.check() == [])
    }

    @Test("A page that is first seen later is the original from then on")
    func late() throws {
        let guest = try ProtectedGuest()
        let page = guest.address("NtSetSystemPowerState") & ~0xfff
        let entry = guest.synthetic.entry(of: page)
        guest.synthetic.setEntry(of: page, to: 0)
        try guest.protections.arm([.kernelCode])
        guest.synthetic.setEntry(of: page, to: entry)
        #expect(try guest.protections.check() == [])
        guest.synthetic.write(UInt8(0xcc), at: page)
        #expect(try guest.protections.check().count == 1)
    }

    @Test("A page that was out when the protection was armed must not come back writable")
    func writableWhenBack() throws {
        let guest = try ProtectedGuest()
        let page = guest.address("NtSetSystemPowerState") & ~0xfff
        let entry = guest.synthetic.entry(of: page)
        guest.synthetic.setEntry(of: page, to: entry & ~1 | 1 << 11)
        try guest.protections.arm([.kernelCode])
        guest.synthetic.setEntry(of: page, to: entry | 2)
        #expect(
            try guest.protections.check().map(\.what) == ["a page of ntoskrnl.exe's PAGELK became writable"])
        guest.synthetic.setEntry(of: page, to: entry)
        #expect(try guest.protections.check() == [])
    }

    @Test("Rights that matter are reported, others and the processor's own bits are not")
    func rights() throws {
        let guest = try armed()
        let page = guest.synthetic.base + 0x1000
        let entry = guest.synthetic.entry(of: page)
        guest.synthetic.setEntry(of: page, to: entry | 0x160)
        #expect(try guest.protections.check() == [])
        guest.synthetic.setEntry(of: page, to: entry | 0x6)
        #expect(
            try guest.protections.check().map(\.what) == [
                "a page of ntoskrnl.exe's .text became writable",
                "a page of ntoskrnl.exe's .text became accessible to user mode",
            ])
        guest.synthetic.setEntry(of: page, to: entry | 1 << 63)
        #expect(
            try guest.protections.check(page: GuestVirtualAddress(page + 0x123)).map(\.what)
                == ["a page of ntoskrnl.exe's .text is no longer executable"])
    }

    @Test("Vigil's own bytes count as the original, and only exactly those")
    func ownPatches() throws {
        let guest = try armed()
        let place = guest.address("KeBugCheckEx")
        let original: [UInt8] = [0x33, 0xc0, 0xc3]
        guest.patches = [CodePatch.Place(physical: try guest.physical(place), original: original, patch: [0xe9, 1, 2])]
        #expect(try guest.protections.check() == [])
        guest.synthetic.write([0xe9, 1, 2], at: place)
        #expect(try guest.protections.check() == [])
        guest.synthetic.write([0xe9, 1, 3], at: place)
        #expect(try guest.protections.check().map(\.what) == ["3 bytes of ntoskrnl.exe's .text changed"])
        // A baseline that is taken while the patch is there is the original's, too.
        guest.synthetic.write([0xe9, 1, 2], at: place)
        guest.protections.disarm([.kernelCode])
        try guest.protections.arm([.kernelCode])
        guest.synthetic.write(original, at: place)
        guest.patches = []
        #expect(try guest.protections.check() == [])
    }

    @Test("A patch of Vigil's that runs over a page's end, and ones that make no sense")
    func patchesAcrossPages() throws {
        let guest = try armed()
        let end = try guest.physical(guest.synthetic.base + 0x1ffe)
        guest.patches = [
            CodePatch.Place(physical: end, original: [0, 0, 0, 0], patch: [1, 2, 3, 4]),
            CodePatch.Place(physical: end, original: [0], patch: []),
            CodePatch.Place(physical: GuestPhysicalAddress(.max - 1), original: [0, 0, 0, 0], patch: [1, 2, 3, 4]),
        ]
        guest.synthetic.write([1, 2], at: guest.synthetic.base + 0x1ffe)
        #expect(try guest.protections.check() == [])
    }

    @Test("Slices go round: each page is looked at once in a round, and none is forgotten")
    func slices() throws {
        let guest = try armed()
        guest.synthetic.write(UInt8(0xcc), at: guest.address("KeBugCheckEx"))
        guest.synthetic.write(UInt8(0xcc), at: guest.synthetic.base + 0x7ff0)
        let pages = guest.protections.watchedPages.count
        var found: [Int] = []
        for slice in 0..<(2 * pages) where try !guest.protections.check(budget: 4096).isEmpty { found.append(slice) }
        #expect(found.count == 2)
        #expect(found.allSatisfy { $0 <= pages })
    }

    @Test("Suspended, nothing is compared; resumed, it is compared with what was there before")
    func suspension() throws {
        let guest = try armed()
        guest.protections.suspend()
        guest.synthetic.write(UInt8(0xcc), at: guest.address("KeBugCheckEx"))
        #expect(try guest.protections.check() == [])
        #expect(throws: ProtectionError.suspended) { try guest.protections.arm([.serviceTables]) }
        #expect(guest.protections.armed == [.kernelCode])
        #expect(try guest.protections.resume().map(\.what) == ["1 byte of ntoskrnl.exe's .text changed"])
        // What was said before a suspension is not said again after it.
        guest.protections.suspend()
        #expect(try guest.protections.resume() == [])
    }

    @Test("Armed again, what is there counts; disarmed, nothing does")
    func disarm() throws {
        let guest = try armed()
        guest.protections.disarm([.kernelCode])
        #expect(guest.protections.armed == [] && guest.protections.watchedPages == [])
        guest.synthetic.write(UInt8(0xcc), at: guest.address("KeBugCheckEx"))
        #expect(try guest.protections.check() == [])
        try guest.protections.arm([.kernelCode])
        #expect(try guest.protections.check() == [])
    }

    @Test("Drivers are protected when they are loaded, hidden ones stay so, unloaded ones are let go")
    func drivers() throws {
        let guest = try armed()
        guest.loadDriver()
        // While it is being loaded it is written to.
        #expect(try guest.protections.check() == [])
        guest.synthetic.write(UInt8(0xc3), at: ProtectedGuest.driverBase + 0x1000)
        for _ in 0..<2 { #expect(try guest.protections.check() == []) }
        let code = ProtectedGuest.driverBase + 0x1000
        guest.synthetic.write(UInt8(0xcc), at: code)
        #expect(try guest.protections.check().map(\.what) == ["1 byte of driver.sys's .text changed"])
        guest.unlist()
        guest.synthetic.write(UInt8(0xcd), at: code)
        #expect(try guest.protections.check().map(\.what) == ["1 byte of driver.sys's .text changed"])
        for page in 0..<3 { guest.synthetic.tables.unmap(ProtectedGuest.driverBase + UInt64(page) * 4096) }
        #expect(try guest.protections.check() == [])
        guest.loadDriver(stamp: 2)
        #expect(try guest.protections.check() == [])
    }

    @Test("A driver whose header is another one is said to be replaced, and is new from then on")
    func replaced() throws {
        let guest = try ProtectedGuest()
        guest.loadDriver()
        try guest.protections.arm([.kernelCode])
        guest.loadDriver(name: "other.sys", stamp: 2)
        #expect(try guest.protections.check().map(\.what) == ["driver.sys was replaced by other.sys"])
        for _ in 0..<2 { #expect(try guest.protections.check() == []) }
        guest.synthetic.write(UInt8(0xcc), at: ProtectedGuest.driverBase + 0x1001)
        #expect(try guest.protections.check().map(\.what) == ["1 byte of other.sys's .text changed"])
    }

    @Test("Lists of modules that make no sense end, and the kernel is protected all the same")
    func hostileLists() throws {
        let guest = try ProtectedGuest()
        let head = guest.address("PsLoadedModuleList")
        let entry = ProtectedGuest.driverEntry
        guest.loadDriver()
        let lists: [() -> Void] = [
            // In a circle that does not lead back to the head; into nothing; into user memory; to an odd address.
            { guest.synthetic.write(entry, at: entry) },
            { guest.synthetic.write(UInt64(0xffff_c000_0000_0000), at: entry) },
            { guest.synthetic.write(UInt64(0x1000), at: head) },
            { guest.synthetic.write(entry + 1, at: head) },
            { guest.synthetic.write(UInt64.max & ~7, at: head) },
            // An image on top of the kernel; one without a header.
            { guest.list(entry: entry, base: guest.synthetic.base + 0x1000, name: "x") },
            { guest.list(entry: entry, base: 0xffff_c000_0000_0000, name: "x") },
            // A name that is no text.
            {
                guest.list(entry: entry, base: ProtectedGuest.driverBase, name: "\u{7}\u{1b}[2J")
                guest.synthetic.write(UInt16.max, at: entry + 0x58)
            },
        ]
        for list in lists {
            list()
            guest.protections.disarm([.kernelCode])
            try guest.protections.arm([.kernelCode])
            #expect(try guest.protections.check() == [])
            guest.synthetic.write(UInt8(0xcc), at: guest.address("KeBugCheckEx"))
            #expect(try guest.protections.check().count == 1)
            guest.synthetic.write(UInt8(0x33), at: guest.address("KeBugCheckEx"))
        }
    }

    @Test("A page table entry that leads out of RAM is a moved page, and no trap")
    func outOfRAM() throws {
        let guest = try armed()
        let page = guest.synthetic.base + 0x1000
        guest.synthetic.setEntry(of: page, to: 0x000f_ffff_ffff_f001)
        #expect(try guest.protections.check().count == 1)
    }
}
