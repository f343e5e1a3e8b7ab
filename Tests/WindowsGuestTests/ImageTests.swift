import GuestMemory
import TestSupport
import Testing
import WindowsGuest

@Suite("Images that lie") struct ImageTests {
    let guest = SyntheticKernel()
    var memory: KernelMemory { KernelMemory(guest.tables.memory) }
    var base: GuestVirtualAddress { GuestVirtualAddress(guest.base) }
    /// IMAGE_EXPORT_DIRECTORY.
    var directory: UInt64 { guest.base + 0x7000 }

    func expectMalformed(sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void) throws {
        let error = try #require(throws: DiscoveryError.self, sourceLocation: sourceLocation) { try body() }
        #expect({ if case .malformed = error { true } else { false } }(), sourceLocation: sourceLocation)
    }

    @Test(
        "Headers with impossible values are refused",
        arguments: [
            (0x00, UInt32(0)), (0x3c, 0xfff0), (0x3c, UInt32.max), (0x100, 0), (0x104, 0x0001_014c),
            (0x104, 0xffff_8664), (0x104, 0x0000_8664), (0x118, 0x10b), (0x118 + 56, 0), (0x118 + 56, UInt32.max),
            (0x118 + 112, UInt32.max), (0x118 + 116, UInt32.max), (0x118 + 116, 8), (0x118 + 240 + 12, UInt32.max),
            (0x118 + 240 + 8, UInt32.max),
        ] as [(Int, UInt32)])
    func impossibleHeader(offset: Int, value: UInt32) throws {
        #expect(throws: Never.self) { try PEImage(at: base, in: memory) }
        guest.write(value, at: guest.base + UInt64(offset))
        try expectMalformed { _ = try PEImage(at: base, in: memory) }
    }

    @Test("A header whose page is absent is not known yet")
    func absentHeader() throws {
        guest.setEntry(of: guest.base, to: 0)
        let error = try #require(throws: DiscoveryError.self) { try PEImage(at: base, in: memory) }
        #expect(error.canBeRetried)
    }

    @Test(
        "An export directory with huge counts, or arrays outside the image, is refused",
        arguments: [
            (20, UInt32.max), (24, UInt32.max), (24, 0x1_0000), (28, UInt32.max), (32, 0xafff), (36, UInt32.max),
        ] as [(UInt64, UInt32)])
    func impossibleExports(offset: UInt64, value: UInt32) throws {
        let image = try PEImage(at: base, in: memory)
        guest.write(value, at: directory + offset)
        try expectMalformed { _ = try ExportTable(of: image, in: memory) }
    }

    @Test("Names outside the image, without an end, or with impossible ordinals are passed over")
    func lyingNames() throws {
        let image = try PEImage(at: base, in: memory)
        let count = SyntheticKernel.exportCount
        let names = directory + 40 + UInt64(count) * 4
        guest.write(UInt32.max, at: names)  // ExGetPreviousMode
        guest.write(UInt32(0xb000 - 4), at: names + 4)  // IoGetCurrentProcess' successor in order
        guest.write(UInt16.max, at: names + UInt64(count) * 4 + 4)
        let exports = try ExportTable(of: image, in: memory)
        #expect(exports.exports.count >= count - 3)
        #expect(exports.unreadableNames == 0)
        #expect(throws: DiscoveryError.missingExport("ExGetPreviousMode")) {
            try exports.address(of: "ExGetPreviousMode")
        }
        #expect(throws: Never.self) { try exports.address(of: "ZwClose") }
    }

    @Test("A name that may be in an absent page is not known yet; a name that is not there is missing")
    func absentNames() throws {
        let image = try PEImage(at: base, in: memory)
        let names = directory + 40 + UInt64(SyntheticKernel.exportCount) * 4
        // Point one name into the INIT section, and take its page away.
        guest.write(UInt32(0x9100), at: names)
        guest.setEntry(of: guest.base + 0x9000, to: 0)
        let exports = try ExportTable(of: image, in: memory)
        #expect(exports.unreadableNames == 1)
        let error = try #require(throws: DiscoveryError.self) { try exports.address(of: "Nothing") }
        #expect(error.canBeRetried)
    }

    @Test("An export that is forwarded has no address here")
    func forwarded() throws {
        let image = try PEImage(at: base, in: memory)
        // The functions' array: the first export now points into the directory.
        guest.write(UInt32(0x7000 + 200), at: directory + 40)
        let exports = try ExportTable(of: image, in: memory)
        #expect(exports.exports["ExAllocatePoolWithTag"]?.isForwarded == true)
        try expectMalformed { _ = try exports.address(of: "ExAllocatePoolWithTag") }
        #expect(exports.exports["ZwClose"]?.isForwarded == false)
    }

    @Test("Addresses are told inside and outside of the image and its sections")
    func sections() throws {
        let image = try PEImage(at: base, in: memory)
        #expect(image.rva(of: base + 0x1234) == 0x1234)
        #expect(image.rva(of: base + 0xb000) == nil && image.rva(of: base - 1) == nil)
        #expect(image.isExecutable(base + 0x1000) && !image.isExecutable(base + 0x8000) && !image.isExecutable(base))
        #expect(image.section(containing: base + 0x4000)?.name == "PAGELK")
        #expect(image.section(named: "INIT")?.isDiscardable == true)
    }
}
