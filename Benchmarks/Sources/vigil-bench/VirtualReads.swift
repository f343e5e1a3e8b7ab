import CLimits
import Glibc
import GuestMemory

/// Virtual 8-byte reads in random order, walking the page tables at each.
///
/// Page tables and pages lie in one shared mapping, as a guest's RAM does: 4-level tables that map so many
/// 4 KiB pages, whose frames are in random order, from one canonical kernel address on.
enum VirtualReads {
    static func benchmark(pages: Int) -> Benchmark {
        let name = "virtual-read-8-\(pages)"
        return Benchmark(names: [name]) { context in
            let tables = try SyntheticTables(pages: pages)
            // Each page once, at a random place, over and over until a round is long enough to be timed.
            var generator = SeededGenerator(seed: UInt64(pages))
            let once = (0..<pages).shuffled(using: &generator).map { page in
                SyntheticTables.start + UInt64(page) << 12 + UInt64.random(in: 0..<512, using: &generator) << 3
            }
            let repeats = max(1, (context.quick ? 1 << 18 : 1 << 21) / pages)
            let addresses = Array(repeatElement(once, count: repeats).joined())

            var rounds = Rounds(context.quick ? 3 : 15)
            var sums: Set<UInt64> = []
            _ = try sum(tables.memory, addresses)
            try rounds.measure {
                let time = try seconds { sums.insert(try sum(tables.memory, addresses)) }
                return Double(addresses.count) / time
            } against: {
                let time = seconds {
                    sums.insert(limit_walk(tables.base, UInt64(tables.size), tables.root, addresses, addresses.count))
                }
                return Double(addresses.count) / time
            }
            guard sums.count == 1 else { throw BenchmarkError("\(name): the two walks read different bytes") }
            let (value, limit) = rounds.medians
            return [
                Measurement(
                    name, .rate, value: value / 1e6, limit: limit / 1e6, unit: "M/s",
                    goal: .ratio(0.5, "within 2x"))
            ]
        }
    }

    @inline(never)
    private static func sum(_ memory: VirtualMemory, _ addresses: [UInt64]) throws(MemoryError) -> UInt64 {
        var sum: UInt64 = 0
        for address in addresses { sum &+= try memory.load(UInt64.self, at: GuestVirtualAddress(address)) }
        return sum
    }
}

/// 4-level page tables, and the pages that they map, in a mapping of their own.
final class SyntheticTables {
    /// Where the mapped pages begin.
    static let start: UInt64 = 0xffff_8000_0000_0000

    let base: UnsafeMutablePointer<UInt8>
    let size: Int
    let root: UInt64 = 0
    let memory: VirtualMemory

    init(pages: Int) throws {
        let lastTables = (pages + 511) / 512
        // One table each of levels 4, 3 and 2 reach a GiB.
        guard lastTables <= 512 else { throw BenchmarkError("too many pages for one directory") }
        let tables = 3 + lastTables
        size = (tables + pages) << 12
        guard let start = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0),
            start != MAP_FAILED
        else { throw BenchmarkError("no memory for \(pages) pages: \(String(cString: strerror(errno)))") }
        base = start.assumingMemoryBound(to: UInt8.self)

        let words = UnsafeMutableRawPointer(base).assumingMemoryBound(to: UInt64.self)
        var generator = SeededGenerator(seed: 1)
        let frames = (0..<pages).shuffled(using: &generator)
        let flags: UInt64 = 0x63
        words[256] = 0x1000 | flags
        words[512] = 0x2000 | flags
        for table in 0..<lastTables { words[1024 + table] = UInt64(3 + table) << 12 | flags }
        for page in 0..<pages {
            let frame = tables + frames[page]
            words[3 * 512 + page] = UInt64(frame) << 12 | flags
            for word in 0..<512 { words[frame * 512 + word] = generator.next() }
        }

        let physical = PhysicalMemory(mapped: [
            RAMRegion(
                base: GuestPhysicalAddress(0), length: UInt64(size), hostAddress: UInt64(UInt(bitPattern: start)))
        ])
        memory = VirtualMemory(physical: physical, space: AddressSpace(root: root, mode: .fourLevel))
    }

    deinit { munmap(base, size) }
}
