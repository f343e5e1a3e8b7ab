import Foundation
import GuestMemory
import HypervisorInterface
import TestSupport
import Testing

@testable import MemoryImage

@Suite("Memory images as files") struct MemoryImageTests {
    static func load(_ file: TemporaryFile) throws -> MemoryImage {
        try withExtendedLifetime(file) { try MemoryImage(path: file.path) }
    }

    @Test("A raw image is physical memory from address 0 on")
    func raw() throws {
        var bytes = [UInt8](repeating: 0, count: 3 * 4096 + 100)
        bytes[0x2010] = 0x5a
        let image = try Self.load(try TemporaryFile(bytes))
        #expect(try image.memory.load(UInt32.self, at: GuestPhysicalAddress(0x2010)) == 0x5a)
        #expect(image.memory.size == UInt64(bytes.count))
        #expect(throws: MemoryError.notRAM(GuestPhysicalAddress(UInt64(bytes.count)))) {
            try image.memory.load(UInt64.self, at: GuestPhysicalAddress(UInt64(bytes.count - 4)))
        }
        #expect(image.identity.hypervisor == "raw memory image")
        #expect(try image.processorTables() == [])
        #expect(try image.runState() == .other("image"))
    }

    @Test("A core's memory is read from where its segments are in the file, also across segments")
    func core() throws {
        var builder = CoreBuilder()
        builder.segments = [
            CoreBuilder.notes(CoreBuilder.processor(cr3: 0x3000, idt: 0xffff_f800_0000_0000)),
            CoreBuilder.load(0x2000, ELFCoreTests.page(2)), CoreBuilder.load(0x1000, ELFCoreTests.page(1)),
        ]
        let image = try Self.load(try TemporaryFile(builder.build()))
        #expect(try image.memory.load(UInt64.self, at: GuestPhysicalAddress(0x1ffc)) == 0x0202_0202_0101_0101)
        #expect(try image.memory.load(UInt16.self, at: GuestPhysicalAddress(0x2ffe)) == 0x0202)
        #expect(throws: MemoryError.notRAM(GuestPhysicalAddress(0xff8))) {
            try image.memory.load(UInt64.self, at: GuestPhysicalAddress(0xff8))
        }
        #expect(try image.processorTables().map(\.control.cr3) == [0x3000])
        #expect(image.memoryAccess == "ELF core, with the registers of 1 vCPU")
        #expect(image.identity.hypervisor == "ELF core by QEMU")
    }

    @Test("A file that is cut short after it was opened gives errors where it ends, and what is before")
    func cutWhileOpen() throws {
        let file = try TemporaryFile([UInt8](repeating: 7, count: 64 << 12))
        let image = try Self.load(file)
        #expect(truncate(file.path, 0x2ffc) == 0)
        #expect(try image.memory.load(UInt64.self, at: GuestPhysicalAddress(0x2ff0)) == 0x0707_0707_0707_0707)
        for address in [0x2ff8, 0x3000, 0x3f_ff00] as [UInt64] {
            let place = GuestPhysicalAddress(address)
            if address < 64 << 12 {
                #expect(throws: MemoryError.unreachable(place, errno: ENODATA)) {
                    try image.memory.load(UInt64.self, at: place)
                }
            } else {
                #expect(throws: MemoryError.notRAM(place)) { try image.memory.load(UInt64.self, at: place) }
            }
        }
        let error = #expect(throws: HypervisorError.self) { try image.processorTables() }
        #expect({ if case .unusableImage = error { true } else { false } }())
    }

    @Test("A sparse image of many gigabytes opens at once, and is read where it is asked for")
    func large() throws {
        let file = try TemporaryFile()
        try #require(truncate(file.path, 256 << 30) == 0)
        let start = ContinuousClock.now
        let image = try Self.load(file)
        #expect(try image.memory.load(UInt64.self, at: GuestPhysicalAddress((256 << 30) - 8)) == 0)
        #expect(ContinuousClock.now - start < .seconds(1))
        #expect(image.memory.size == 256 << 30)
    }

    /// The error that a path gives.
    private func error(_ path: String) -> HypervisorError? {
        do throws(HypervisorError) {
            _ = try MemoryImage(path: path)
            return nil
        } catch { return error }
    }

    @Test("What is no file that can be read is called what it is")
    func noFile() throws {
        let empty = try TemporaryFile()
        let pipe = "/tmp/vigil-image-pipe-\(getpid())"
        mkfifo(pipe, 0o600)
        defer { unlink(pipe) }
        #expect(error("/nowhere/at-all") == .cannotOpen(path: "/nowhere/at-all", reason: "no such file"))
        #expect(error(empty.path + "/x") == .cannotOpen(path: empty.path + "/x", reason: "no such file"))
        #expect(error(empty.path) == .unusableImage(path: empty.path, reason: "it is empty"))
        #expect(error("/tmp") == .unusableImage(path: "/tmp", reason: "it is a directory"))
        #expect(error("/dev/zero") == .unusableImage(path: "/dev/zero", reason: "it is a device"))
        #expect(error(pipe) == .unusableImage(path: pipe, reason: "it is a pipe, which can only be read once"))
    }

    @Test(
        "Formats that are not read are refused by name, with how to get one that is",
        arguments: [
            ("makedumpfile\0\0\0\0", "flattened"), ("KDUMP   \u{6}\0\0\0", "\"KDUMP\""), ("DISKDUMP", "diskdump"),
            ("PAGEDU64", "Windows crash dump"), ("PAGEDUMP", "Windows crash dump"), ("QEVM\0\0\0\u{3}", "migration"),
            ("LibvirtQemudSave", "libvirt"),
        ])
    func refused(mark: String, word: String) throws {
        let file = try TemporaryFile(Array(mark.utf8) + [UInt8](repeating: 0, count: 8192))
        let sentence = error(file.path)?.description ?? ""
        #expect(sentence.contains(word) && sentence.contains("dump-guest-memory"), "\(sentence)")
    }

    @Test("Nothing happens to an image: a wait ends at its deadline, or by a descriptor")
    func events() throws {
        let image = try Self.load(try TemporaryFile(ELFCoreTests.page(0)))
        let start = ContinuousClock.now
        #expect(try image.nextEvent(until: start + .milliseconds(20)) == nil)
        #expect(ContinuousClock.now >= start + .milliseconds(20))
        var ends: [Int32] = [0, 0]
        try #require(pipe(&ends) == 0)
        defer { for end in ends { close(end) } }
        image.watchedDescriptors = [ends[0]]
        #expect(write(ends[1], [1], 1) == 1)
        #expect(try image.nextEvent(until: .now + .seconds(60)) == .descriptorReady(ends[0]))
        image.watchedDescriptors = []
        image.wakeDescriptor = ends[0]
        #expect(try image.nextEvent(until: .now + .seconds(60)) == .interrupted)
        #expect(try image.nextEvent(until: .now) == nil)
        // A search is given up by it.
        #expect(write(ends[1], [1], 1) == 1)
        #expect(throws: HypervisorError.unsupported("the search for page tables was interrupted")) {
            try image.processorTables()
        }
    }
}
