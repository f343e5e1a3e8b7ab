import GuestMemory
import HypervisorInterface
import Protections
import TestSupport
import Testing
import WindowsGuest

@Suite("Protection of tables") struct TableTests {
    @Test("A gate that leads elsewhere is reported for its vCPU, once")
    func gates() throws {
        let guest = try ProtectedGuest(vcpus: 2)
        let other: UInt64 = 0xffff_f806_4902_0000
        guest.synthetic.tables.mapNew(other, .kernelData)
        for offset in stride(from: UInt64(0), to: 32 * 16, by: 8) {
            guest.synthetic.write(
                try guest.kernel.memory.load(UInt64.self, at: GuestVirtualAddress(guest.synthetic.idtBase + offset)),
                at: other + offset)
        }
        guest.guest.machine.tables[1].idtBase = GuestVirtualAddress(other)
        try guest.protections.arm([.interruptTables])
        #expect(try guest.protections.check() == [])
        guest.synthetic.write(UInt16(0x10), at: other + 14 * 16)
        let found = try guest.protections.check()
        #expect(found.count == 1 && found.first?.address == GuestVirtualAddress(other + 14 * 16))
        #expect(found.first?.what.hasPrefix("gate 0xe of vCPU 1 leads to") == true)
        #expect(try guest.protections.check() == [])
        #expect(guest.protections.watchedPages.count == 2)
    }

    @Test("A table that moved or grew, and a vCPU in its firmware")
    func registers() throws {
        let guest = try ProtectedGuest()
        try guest.protections.arm([.interruptTables])
        let before = guest.guest.machine.tables[0]
        guest.guest.machine.tables[0].idtLimit = 0x1fff_ffff
        #expect(
            try guest.protections.check().map(\.what)
                == ["the interrupt table of vCPU 0 has the limit 0x1fffffff instead of 0xfff"])
        guest.guest.machine.tables[0].idtBase = GuestVirtualAddress(.max - 3)
        #expect(try guest.protections.check().count == 1)
        guest.guest.machine.tables[0].control.cr0 = 0x11
        #expect(try guest.protections.check() == [])
        guest.guest.machine.tables[0] = before
        #expect(try guest.protections.check() == [])
        guest.guest.machine.failures[.tables] = [.gone("QEMU ended")]
        #expect(throws: ProtectionError.hypervisor(.gone("QEMU ended"))) { try guest.protections.check() }
    }

    @Test("What was found before something failed is told by the next check")
    func untold() throws {
        let guest = try ProtectedGuest()
        try guest.protections.arm([.kernelCode, .interruptTables])
        guest.synthetic.write(UInt8(0xcc), at: guest.address("KeBugCheckEx"))
        guest.guest.machine.failures[.tables] = [.gone("QEMU ended")]
        #expect(throws: ProtectionError.self) { try guest.protections.check() }
        #expect(try guest.protections.check().count == 1)
        #expect(try guest.protections.check() == [])
    }

    @Test("One page of a table can be asked about")
    func page() throws {
        let guest = try ProtectedGuest()
        try guest.protections.arm([.kernelCode, .interruptTables, .serviceTables])
        let entry = guest.address("KiServiceTable") + 4
        guest.synthetic.write(UInt16(0), at: guest.synthetic.idtBase)
        guest.synthetic.write(UInt32(0), at: entry)
        let other = GuestVirtualAddress(guest.address("KeBugCheckEx"))
        #expect(try guest.protections.check(page: other) == [])
        let gate = GuestVirtualAddress(guest.synthetic.idtBase)
        #expect(try guest.protections.check(page: gate + 0x800).map(\.address) == [gate])
        #expect(
            try guest.protections.check(page: GuestVirtualAddress(entry)).map(\.address)
                == [GuestVirtualAddress(entry)])
        #expect(try guest.protections.check() == [])
    }

    @Test("A service that leads elsewhere is one violation, whatever else is armed")
    func services() throws {
        let guest = try ProtectedGuest()
        let entry = guest.address("KiServiceTable") + 4 * 0x36
        let target = UInt32(truncatingIfNeeded: guest.address("NtClose") &- guest.address("KiServiceTable")) << 4
        let original = try guest.kernel.memory.load(UInt32.self, at: GuestVirtualAddress(entry))
        for kinds: Set<ProtectionKind> in [[.serviceTables], [.serviceTables, .kernelCode]] {
            try guest.protections.arm(kinds)
            guest.synthetic.write(target, at: entry)
            let found = try guest.protections.check()
            #expect(found.map(\.protection) == [.serviceTables])
            #expect(found.first?.address == GuestVirtualAddress(entry))
            let close = GuestVirtualAddress(guest.address("NtClose"))
            #expect(found.first?.what.hasPrefix("service 0x36 leads to \(close) instead of") == true)
            #expect(try guest.protections.check() == [])
            guest.synthetic.write(original, at: entry)
            #expect(try guest.protections.check() == [])
        }
    }

    @Test("Both descriptors, the argument counts and the dispatcher's code are protected")
    func descriptors() throws {
        let guest = try ProtectedGuest()
        let descriptor = guest.address("KeServiceDescriptorTable")
        guest.synthetic.write(guest.synthetic.base + 0x7800, at: descriptor + 24)
        try guest.protections.arm([.serviceTables])
        guest.synthetic.write(UInt64(1), at: guest.address("KeServiceDescriptorTableShadow"))
        guest.synthetic.write(UInt8(8), at: guest.synthetic.base + 0x7803)
        guest.synthetic.write(UInt8(0xcc), at: guest.address("KiSystemServiceStart"))
        guest.synthetic.write(UInt16(0x1000), at: descriptor + 16)
        #expect(
            Set(try guest.protections.check().map(\.what)) == [
                "1 byte of KeServiceDescriptorTableShadow changed",
                "1 byte of the service argument table changed",
                "1 byte of the system-call entry code changed", "2 bytes of KeServiceDescriptorTable changed",
            ])
        #expect(try guest.protections.check() == [])
        // The code is part of the kernel's, where that is protected.
        guest.protections.disarm(Set(ProtectionKind.allCases))
        try guest.protections.arm([.kernelCode, .serviceTables])
        guest.synthetic.write(UInt8(0xcd), at: guest.address("KiSystemServiceStart"))
        #expect(try guest.protections.check().map(\.protection) == [.kernelCode])
    }

    @Test("The graphical services' entry may be filled once, and not be changed then")
    func shadow() throws {
        let guest = try ProtectedGuest()
        try guest.protections.arm([.serviceTables])
        let entry = guest.address("KeServiceDescriptorTableShadow") + 32
        guest.synthetic.write(UInt64(0xffff_f000_0000_1000), at: entry)
        #expect(try guest.protections.check() == [])
        guest.synthetic.write(UInt64(0xffff_f000_0000_2000), at: entry)
        #expect(try guest.protections.check().count == 1)
    }

    @Test("A kernel without a service table cannot be protected so")
    func missing() throws {
        let guest = try ProtectedGuest()
        guest.synthetic.write(UInt64(0), at: guest.address("KeServiceDescriptorTable"))
        #expect(throws: ProtectionError.self) { try guest.protections.arm([.serviceTables]) }
        #expect(guest.protections.armed == [])
    }
}
