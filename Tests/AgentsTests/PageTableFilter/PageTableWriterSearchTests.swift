import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

@testable import Agents

@Suite("The search for what writes page tables") struct PageTableWriterSearchTests {
    static let window: UInt64 = 0xffff_a000_0020_3000
    static let directMap: UInt64 = 0xffff_9000_0000_0000
    static let selfMapIndex: UInt64 = 0x1ed

    /// Page tables with a page that comes and goes, and what ways there are to them.
    private func guest(selfMap: Bool = true, directMap: Bool = true) -> PageTableBuilder {
        let ram = SyntheticRAM(size: 4 << 20)
        let tables = PageTableBuilder(ram: ram)
        tables.mapNew(Self.window, .kernelData)
        tables.mapNew(0x7ff6_0000_0000, .userData)
        if directMap {
            for block in 0..<2 as Range<UInt64> {
                tables.map(Self.directMap + block << 21, to: block << 21, .kernelData, level: 2)
            }
        }
        if selfMap { ram.store(tables.root | 3, at: tables.root + Self.selfMapIndex * 8) }
        return tables
    }

    private func catalog() throws -> (PageTableWriterCatalog, PageTableWriter) {
        let file = try KernelFile("ntoskrnl-O2-direct.exe")
        let catalog = try PageTableWriterCatalog(of: file.image, in: file.memory)
        let writer = try #require(
            catalog.candidates.values.filter { $0.kind == .exchange && $0.index == nil && !$0.changesItsAddress }
                .min { $0.end < $1.end })
        return (catalog, writer)
    }

    @Test("An entry that changes is found, with its level and what it translates; A and D are none")
    func changes() {
        let tables = guest()
        var snapshot = PageTableSnapshot(tables.space, in: tables.ram.physical)
        #expect(snapshot.update().isEmpty && !snapshot.isTruncated)
        let place = tables.entryAddress(of: Self.window)
        let before = tables.ram.load(UInt64.self, at: place)
        tables.ram.store(before | 0x60, at: place)
        #expect(snapshot.update().isEmpty)
        tables.ram.store(UInt64(0), at: place)
        let change = PageTableSnapshot.Change(
            place: GuestPhysicalAddress(place), translates: GuestVirtualAddress(Self.window), level: 1,
            before: before | 0x60, after: 0)
        #expect(snapshot.update() == [change])
        // Of the lower half nothing is looked at.
        tables.ram.store(UInt64(0), at: tables.entryAddress(of: 0x7ff6_0000_0000))
        tables.ram.store(UInt64(0), at: tables.root)
        #expect(snapshot.update().isEmpty)
        let upper = tables.entryAddress(of: Self.window, level: 2)
        tables.ram.store(tables.ram.load(UInt64.self, at: upper) ^ 4, at: upper)
        #expect(snapshot.update().map(\.level) == [2])
    }

    @Test("An entry's linear addresses are those at which the tables themselves show it", arguments: 1...4)
    func aliases(level: Int) throws {
        let tables = guest()
        let aliases = PageTableAliases(tables.space, in: tables.ram.physical)
        #expect(aliases.selfMapIndex == Int(Self.selfMapIndex))
        let place = tables.entryAddress(of: Self.window, level: level)
        let byMap = try #require(
            aliases.selfMapAddress(ofEntryFor: GuestVirtualAddress(Self.window), level: level))
        #expect(try tables.memory.translate(byMap).physical.rawValue == place)
        let page = GuestPhysicalAddress(place).page
        let others = aliases.writableMappings(of: [page])
        #expect(others == [page: [GuestVirtualAddress(Self.directMap + page.rawValue)]])
        #expect(try tables.memory.translate(GuestVirtualAddress(Self.directMap + place)).physical.rawValue == place)
        #expect(aliases.selfMapAddress(ofEntryFor: GuestVirtualAddress(Self.window), level: 5) == nil)
    }

    @Test("Without a self-map, and without another mapping, there is only what there is")
    func fewerWays() throws {
        let (catalog, _) = try catalog()
        for (selfMap, directMap, expected) in [(true, false, 1), (false, true, 1), (true, true, 2), (false, false, 0)] {
            let tables = guest(selfMap: selfMap, directMap: directMap)
            var search = PageTableWriterSearch(tables.space, in: tables.ram.physical, catalog: catalog)
            tables.unmap(Self.window)
            #expect(search.observe() == 1)
            let sites = search.sites(4)
            #expect(sites.count == expected && sites.filter(\.isSelfMap).count == (selfMap ? 1 : 0))
            for site in sites {
                #expect(site.breakpoint == .access(site.address, length: 8))
                #expect(try tables.memory.translate(site.address).physical == site.entry)
            }
            #expect(search.sites(1).count == min(1, expected) && search.sites(0).isEmpty)
        }
    }

    @Test("A stop behind a candidate with the watched address is its proof; anything else is none")
    func confirms() throws {
        let (catalog, writer) = try catalog()
        let tables = guest()
        var search = PageTableWriterSearch(tables.space, in: tables.ram.physical, catalog: catalog)
        tables.unmap(Self.window)
        search.observe()
        let site = try #require(search.sites(4).last)
        var registers = Registers()
        registers.cs = 0x10
        registers.rip = writer.end.rawValue
        #expect(search.confirm(registers, at: site) == nil)
        let value = site.address.rawValue &- UInt64(bitPattern: Int64(writer.displacement))
        let paths: [WritableKeyPath<Registers, UInt64>] = [
            \.rax, \.rcx, \.rdx, \.rbx, \.rsp, \.rbp, \.rsi, \.rdi, \.r8, \.r9, \.r10, \.r11, \.r12, \.r13, \.r14,
            \.r15,
        ]
        registers[keyPath: paths[Int(try #require(writer.base))]] = value
        registers.cs = 0x33
        #expect(search.confirm(registers, at: site) == nil)
        registers.cs = 0x10
        registers.rip += 1
        #expect(search.confirm(registers, at: site) == nil)
        #expect(search.unexplainedStops == 3 && search.confirmed.isEmpty)
        registers.rip -= 1
        #expect(search.confirm(registers, at: site) == writer)
        #expect(search.confirmed == [writer.end: writer])
    }

    @Test("The entries that change most often come first, and only so many are remembered")
    func order() throws {
        let (catalog, _) = try catalog()
        let tables = guest(directMap: false)
        let pages = UInt64(PageTableWriterSearch.maximumEntries + 100)
        let start = Self.window + 0x100_0000
        for page in 0..<pages { tables.map(start + page * 4096, to: 0x5000, .kernelData) }
        var search = PageTableWriterSearch(tables.space, in: tables.ram.physical, catalog: catalog)
        for page in 0..<pages { tables.unmap(start + page * 4096) }
        #expect(search.observe() == Int(pages))
        tables.map(start + 7 * 4096, to: 0x6000, .kernelData)
        #expect(search.observe() == 1)
        #expect(search.sites(1000).count == PageTableWriterSearch.maximumEntries)
        #expect(search.sites(1).first?.entry.rawValue == tables.entryAddress(of: start + 7 * 4096))
    }

    @Test("Tables that refer to themselves and to garbage end the search all the same", arguments: 1...6)
    func hostile(seed: Int) throws {
        var random = SeededGenerator(seed: UInt64(seed))
        let ram = SyntheticRAM(size: 1 << 20)
        let root = ram.allocate()
        let frames = (0..<64).map { _ in ram.allocate() }
        for frame in [root] + frames {
            for index in 0..<512 as Range<UInt64> {
                let entry: UInt64
                switch seed {
                case 1: entry = root | 7  // everything is the root
                case 2: entry = frame | 7  // every table is its own
                case 3: entry = (frames.randomElement(using: &random) ?? root) | 7
                case 4: entry = random.next()
                case 5: entry = (random.next() & 0xfffff) << 12 | 0x87
                default: entry = (frames.randomElement(using: &random) ?? root) | random.next() & 0x8000_0000_0000_0fff
                }
                ram.store(entry, at: frame + index * 8)
            }
        }
        for mode in [PagingMode.fourLevel, .fiveLevel, .pae, .none] {
            let space = AddressSpace(root: root, mode: mode)
            var snapshot = PageTableSnapshot(space, in: ram.physical, limit: 32)
            #expect(snapshot.tableCount <= 32)
            ram.store(random.next(), at: frames[3] + 8)
            #expect(snapshot.update().count <= 1)
            let aliases = PageTableAliases(space, in: ram.physical)
            let pages = Set(frames.map { GuestPhysicalAddress($0) })
            let found = aliases.writableMappings(of: pages, limit: 20_000)
            #expect(found.values.reduce(0) { $0 + $1.count } <= 20_000 * 64)
        }
        ram.unmap()
    }
}
