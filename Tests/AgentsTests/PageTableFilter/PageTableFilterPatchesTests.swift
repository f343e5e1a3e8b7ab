import GuestMemory
import TestSupport
import Testing
import WindowsGuest
import X86

@testable import Agents

@Suite("What leads a kernel's writes to the filter") struct PageTableFilterPatchesTests {
    private static let target = GuestVirtualAddress(0xffff_b800_0400_0110)

    private struct Guest {
        let file: KernelFile
        let patches: PageTableFilterPatches
        let writers: [PageTableWriter]
        var memory: KernelMemory { file.memory }

        init() throws {
            file = try KernelFile("ntoskrnl-O2-direct.exe")
            let catalog = try PageTableWriterCatalog(of: file.image, in: file.memory)
            // Some are across the end of a page.
            writers = catalog.candidates.values.filter { $0.address.rawValue & 0xfff > 0xf00 }
            let code: [UInt8] = [0x6a, 0, 0x6a, 20, 0xe9]
            let text = try #require(file.image.section(named: ".text"))
            let start = file.image.address(rva: text.rva)
            let bytes = try file.memory.bytes(at: start, count: UInt64(text.virtualSize))
            let place = try #require(
                stride(from: 0, to: bytes.count, by: 16).first { Array(bytes[$0...].prefix(5)) == code })
            let gate = try GatePatch(
                handler: start + UInt64(place), target: PageTableFilterPatchesTests.target, in: file.memory)
            patches = try PageTableFilterPatches(gate: gate, writers: writers + writers, in: file.memory)
        }

        func attach() throws {
            for place in try patches.attachment(in: memory) { file.ram.store(place.patch, at: place.physical.rawValue) }
        }

        func detach() throws {
            let (places, failure) = patches.detachment(in: memory)
            if let failure { throw failure }
            for place in places {
                file.ram.store(place.original, at: place.physical.rawValue)
            }
        }

        func bytes() throws -> [[UInt8]] {
            try patches.patches.map { try memory.bytes(at: $0.address, count: UInt64($0.original.count)) }
        }
    }

    @Test("Everything is put there, the gate first, and taken back, the gate last")
    func order() throws {
        let guest = try Guest()
        #expect(guest.writers.count >= 3 && guest.patches.patches.count == guest.writers.count + 1)
        let attachment = try guest.patches.attachment(in: guest.memory)
        #expect(attachment.first?.patch == guest.patches.gate.replacement)
        try guest.attach()
        #expect(try guest.bytes() == guest.patches.patches.map(\.replacement))
        #expect(try guest.patches.places(in: guest.memory) == attachment)
        let detachment = guest.patches.detachment(in: guest.memory).places
        #expect(detachment.last?.original == guest.patches.gate.original)
        try guest.detach()
        #expect(try guest.bytes() == guest.patches.patches.map(\.original))
        #expect(guest.patches.detachment(in: guest.memory).places.isEmpty)
    }

    @Test("A page that the guest has read anew is left alone; a page that has moved is found")
    func moved() throws {
        let guest = try Guest()
        try guest.attach()
        let first = guest.patches.patches[1]
        // As it was in the file.
        guest.file.tables.write(first.original, at: first.address.rawValue)
        #expect(
            try guest.patches.detachment(in: guest.memory).places.count
                == guest.patches.places(in: guest.memory).count - 1)
        guest.file.tables.write(first.replacement, at: first.address.rawValue)
        let page = first.address.page
        let contents = try guest.memory.bytes(at: page, count: 4096)
        let frame = guest.file.ram.allocate()
        guest.file.ram.store(contents, at: frame)
        guest.file.tables.map(page.rawValue, to: frame, .kernelCode)
        try guest.detach()
        #expect(try guest.bytes() == guest.patches.patches.map(\.original))
        #expect(guest.file.ram.load(UInt8.self, at: frame + first.address.rawValue & 0xfff) == first.original[0])
    }

    @Test("What somebody else has changed, or what is absent, is not replaced, and keeps the gate where it is")
    func foreign() throws {
        let guest = try Guest()
        let last = try #require(guest.patches.patches.last)
        guest.file.tables.write([0xcc] as [UInt8], at: last.address.rawValue)
        #expect(throws: PageTableFilterError.self) { try guest.patches.attachment(in: guest.memory) }
        #expect(throws: PageTableFilterError.self) {
            try PageTableFilterPatches(gate: guest.patches.gate, writers: guest.writers, in: guest.memory)
        }
        guest.file.tables.write(last.original, at: last.address.rawValue)
        try guest.attach()
        let whole = guest.patches.detachment(in: guest.memory).places
        let entry = guest.file.ram.load(
            UInt64.self, at: guest.file.tables.entryAddress(of: last.address.rawValue))
        func expectRestInPlace() {
            let (places, failure) = guest.patches.detachment(in: guest.memory)
            #expect(failure != nil && !places.isEmpty && places.count < whole.count)
            #expect(!places.contains { $0.original == guest.patches.gate.original })
        }
        guest.file.tables.write([0xcc] as [UInt8], at: last.address.rawValue)
        expectRestInPlace()
        guest.file.tables.write(last.replacement, at: last.address.rawValue)
        guest.file.tables.unmap(last.address.page.rawValue)
        expectRestInPlace()
        #expect(throws: PageTableFilterError.self) { try guest.patches.attachment(in: guest.memory) }
        guest.file.ram.store(entry, at: guest.file.tables.entryAddress(of: last.address.rawValue))
        #expect(guest.patches.detachment(in: guest.memory).places == whole)
    }

    @Test("The entries of watched pages are those that a walk reads, each once, with all their addresses")
    func translations() throws {
        let ram = SyntheticRAM(size: 4 << 20)
        let tables = PageTableBuilder(ram: ram)
        let (first, second) = (0xffff_f800_0020_3000 as UInt64, 0xffff_f800_0020_7000 as UInt64)
        tables.mapNew(first, .kernelCode)
        tables.mapNew(second, .kernelCode)
        tables.mapNew(0x7ff6_0000_0000, .userCode)
        tables.map(0xffff_9000_0000_0000, to: 0, .kernelData, level: 2)
        tables.map(0xffff_9000_0020_0000, to: 0x20_0000, .kernelData, level: 2)
        ram.store(tables.root | 3, at: tables.root + 0x1ed * 8)
        let pages = [first + 8, second, 0xffff_9000_0000_5000, 0x7ff6_0000_0000, 0xffff_c000_0000_0000].map {
            GuestVirtualAddress($0)
        }
        let entries = WatchedTranslations(of: pages, tables.space, in: ram.physical).entries
        // The direct map's page: three levels; nothing's page: one; the two of code: five entries.
        #expect(entries.map(\.level) == [4, 3, 2, 4, 4, 3, 2, 1, 1])
        for entry in entries {
            #expect(entry.place.rawValue == tables.entryAddress(of: entry.page.rawValue, level: entry.level))
            #expect(entry.addresses.count == 2)
            for address in entry.addresses {
                #expect(try tables.memory.translate(address).physical == entry.place)
            }
        }
        #expect(entries.suffix(2).map(\.page.rawValue) == [first, second])
    }
}
