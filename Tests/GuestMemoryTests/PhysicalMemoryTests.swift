import Glibc
import GuestMemory
import TestSupport
import Testing

@Suite("Physical reads") struct PhysicalMemoryTests {
    /// RAM as a PC has it: 640 KiB, a hole, the rest; and a part above 4 GiB that adjoins nothing.
    let storage = SyntheticRAM(size: 16 << 20)
    let memory: PhysicalMemory

    init() {
        let host = UInt64(UInt(bitPattern: storage.bytes.baseAddress!))
        memory = PhysicalMemory(mapped: [
            RAMRegion(base: GuestPhysicalAddress(1 << 32), length: 1 << 20, hostAddress: host + (8 << 20)),
            RAMRegion(base: GuestPhysicalAddress(0), length: 0xa0000, hostAddress: host),
            RAMRegion(base: GuestPhysicalAddress(0x10_0000), length: 1 << 20, hostAddress: host + 0x10_0000),
            RAMRegion(base: GuestPhysicalAddress(0x20_0000), length: 4 << 20, hostAddress: host + (9 << 20)),
        ])
    }

    @Test("Regions are listed in order, whatever order they are searched in")
    func order() {
        #expect(memory.regions.map(\.base.rawValue) == [0, 0x10_0000, 0x20_0000, 1 << 32])
        #expect(memory.size == 0xa0000 + (6 << 20))
    }

    @Test(
        "A read goes to the region that holds it",
        arguments: [
            (0x9fff8, 0x9fff8), (0x10_0000, 0x10_0000), (0x20_0000, 9 << 20), ((1 << 32) + 16, (8 << 20) + 16),
        ] as [(UInt64, Int)])
    func regions(address: UInt64, offset: Int) throws {
        storage.store(UInt64(0x0123_4567_89ab_cdef), at: UInt64(offset))
        #expect(try memory.load(UInt64.self, at: GuestPhysicalAddress(address)) == 0x0123_4567_89ab_cdef)
        #expect(try memory.load(UInt8.self, at: GuestPhysicalAddress(address + 7)) == 0x01)
    }

    @Test("A word is found where it lies aligned, in regions of any order, but not where it does not count")
    func words() throws {
        func first(
            _ values: Range<UInt64>, _ size: UInt64, except: [Range<UInt64>] = []
        ) throws -> GuestPhysicalAddress? {
            try memory.firstWord(in: values, wordSize: size, except: except) {}
        }
        storage.store(UInt64(0x1_8200_0010), at: 0x10_0008)
        storage.store(UInt32(0x8200_0020), at: 0x10_0106)
        storage.store(UInt32(0x8200_002f), at: (8 << 20) + 12)
        #expect(try first(0x8200_0000..<0x8200_0030, 8) == nil)
        #expect(try first(0x1_8200_0000..<0x1_8200_0030, 8) == GuestPhysicalAddress(0x10_0008))
        // The lower half of a wider word is a word of 32 bits, one that is not aligned is none.
        #expect(try first(0x8200_0000..<0x8200_0030, 4) == GuestPhysicalAddress(0x10_0008))
        let apart = try first(0x8200_0000..<0x8200_0030, 4, except: [0x10_0008..<0x10_000c])
        #expect(apart == GuestPhysicalAddress((1 << 32) + 12))
        #expect(try first(0x8200_0000..<0x8200_002f, 4, except: [0x10_0000..<0x10_1000]) == nil)
    }

    @Test("Bytes are compared in place, across regions, and in memory that is not mapped here; a hole is an error")
    func holds() throws {
        let place = GuestPhysicalAddress(0x20_0000 - 4)
        storage.store(UInt32(0x1111_1111), at: 0x20_0000 - 4)
        storage.store(UInt32(0x2222_2222), at: 9 << 20)
        let bytes: [UInt8] = [0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x22, 0x22]
        let elsewhere = PhysicalMemory(process: ProcessIdentity.current, regions: memory.regions)
        func holds(_ memory: PhysicalMemory, _ bytes: [UInt8], _ address: GuestPhysicalAddress) throws -> Bool {
            try bytes.withUnsafeBytes { (bytes: UnsafeRawBufferPointer) throws -> Bool in
                try memory.holds(bytes, at: address)
            }
        }
        for memory in [memory, elsewhere] {
            #expect(try holds(memory, bytes, place))
            #expect(try holds(memory, Array(bytes[..<4]), place))
            #expect(try !holds(memory, bytes, place + 1))
            #expect(try holds(memory, [], place))
            #expect(throws: MemoryError.notRAM(GuestPhysicalAddress(0xa_0000))) {
                try holds(memory, bytes, GuestPhysicalAddress(0x9_fffc))
            }
        }
    }

    @Test("A read across regions that adjoin takes from both; one into a hole names its first address")
    func acrossRegions() throws {
        storage.store(UInt32(0x1111_1111), at: 0x20_0000 - 4)
        storage.store(UInt32(0x2222_2222), at: 9 << 20)
        #expect(try memory.load(UInt64.self, at: GuestPhysicalAddress(0x20_0000 - 4)) == 0x2222_2222_1111_1111)
        #expect(throws: MemoryError.notRAM(GuestPhysicalAddress(0xa0000))) {
            try memory.load(UInt64.self, at: GuestPhysicalAddress(0xa0000 - 4))
        }
        for address in [0xa0000, 1 << 31, .max, .max - 7] as [UInt64] {
            #expect(throws: MemoryError.notRAM(GuestPhysicalAddress(address))) {
                try memory.load(UInt64.self, at: GuestPhysicalAddress(address))
            }
        }
    }

    @Test("RAM in a file is read from its regions' offsets; where the file has ended it is out of reach")
    func file() throws {
        let path = "/tmp/vigil-ram-file-\(ProcessIdentity.current)"
        let descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        try #require(descriptor >= 0)
        unlink(path)
        let bytes = (0..<0x3000).map { UInt8(truncatingIfNeeded: $0 >> 4) }
        try #require(write(descriptor, bytes, bytes.count) == bytes.count)
        // The second region ends behind the file.
        let memory = PhysicalMemory(
            file: RAMFile(descriptor: descriptor, size: UInt64(bytes.count)),
            regions: [
                RAMRegion(base: GuestPhysicalAddress(0x1000), length: 0x1000, hostAddress: 0x10),
                RAMRegion(base: GuestPhysicalAddress(0x2000), length: 0x1000, hostAddress: 0x2800),
            ])
        #expect(try memory.load(UInt64.self, at: GuestPhysicalAddress(0x1000)) == 0x0101_0101_0101_0101)
        // From the end of the one to the start of the other.
        #expect(try memory.load(UInt32.self, at: GuestPhysicalAddress(0x1ffe)) == 0x8080_0000)
        #expect(try memory.load(UInt64.self, at: GuestPhysicalAddress(0x27f8)) == 0xffff_ffff_ffff_ffff)
        #expect(throws: MemoryError.unreachable(GuestPhysicalAddress(0x27fc), errno: ENODATA)) {
            try memory.load(UInt64.self, at: GuestPhysicalAddress(0x27fc))
        }
        #expect(throws: MemoryError.notRAM(GuestPhysicalAddress(0xffc))) {
            try memory.load(UInt64.self, at: GuestPhysicalAddress(0xffc))
        }
        let beyond = PhysicalMemory(
            file: RAMFile(descriptor: dup(descriptor), size: .max),
            regions: [RAMRegion(base: GuestPhysicalAddress(0), length: .max, hostAddress: 1 << 63)])
        #expect(throws: MemoryError.unreachable(GuestPhysicalAddress(8), errno: ENODATA)) {
            try beyond.load(UInt64.self, at: GuestPhysicalAddress(8))
        }
    }

    /// Answers each read with its address.
    final class Echo: PhysicalMemoryReader {
        func read(at address: GuestPhysicalAddress, into buffer: UnsafeMutableRawBufferPointer) throws(MemoryError) {
            guard address.rawValue < 0x8000 else { throw .unreachable(address, errno: 5) }
            for index in buffer.indices {
                buffer[index] = UInt8(truncatingIfNeeded: address.rawValue >> (8 * UInt64(index)))
            }
        }
    }

    @Test("RAM that is not mapped is read by its reader, whose errors come through")
    func reader() throws {
        let memory = PhysicalMemory(
            reader: Echo(),
            regions: [RAMRegion(base: GuestPhysicalAddress(0), length: 0x10000, hostAddress: 0)])
        #expect(try memory.load(UInt64.self, at: GuestPhysicalAddress(0x1234)) == 0x1234)
        #expect(throws: MemoryError.unreachable(GuestPhysicalAddress(0x9000), errno: 5)) {
            try memory.load(UInt32.self, at: GuestPhysicalAddress(0x9000))
        }
        #expect(throws: MemoryError.notRAM(GuestPhysicalAddress(0x10000))) {
            try memory.load(UInt64.self, at: GuestPhysicalAddress(0x10000))
        }
    }

    @Test("RAM of another process is read from there; a process that is gone is out of reach")
    func process() throws {
        let page = storage.allocate()
        storage.store(UInt32(0xcafe), at: page)
        let host = UInt64(UInt(bitPattern: storage.bytes.baseAddress!)) + page
        let region = RAMRegion(base: GuestPhysicalAddress(0x1000), length: 0x1000, hostAddress: host)
        let own = PhysicalMemory(process: ProcessIdentity.current, regions: [region])
        #expect(try own.load(UInt32.self, at: GuestPhysicalAddress(0x1000)) == 0xcafe)
        let gone = PhysicalMemory(process: Int32.max, regions: [region])
        #expect(throws: MemoryError.self) { try gone.load(UInt32.self, at: GuestPhysicalAddress(0x1000)) }
    }
}
