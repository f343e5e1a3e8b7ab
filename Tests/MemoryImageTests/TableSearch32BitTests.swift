import GuestMemory
import HypervisorInterface
import TestSupport
import Testing

@testable import MemoryImage

@Suite("The search for tables of 32-bit systems") struct TableSearch32BitTests {
    /// A system with one page of handlers and one interrupt table, as Windows has its tables.
    private struct System {
        static let code: UInt64 = 0x8260_0000
        static let idt: UInt64 = 0x8270_0000
        /// Where Windows maps its page tables (public symbols: PTE_BASE).
        static let tableBase: UInt64 = 0xc000_0000

        let ram: SyntheticRAM
        let tables: PageTableBuilder
        let isPAE: Bool

        init(isPAE: Bool, mapsItself: Bool = true) {
            ram = SyntheticRAM(size: 2 << 20)
            self.isPAE = isPAE
            tables = PageTableBuilder(ram: ram, mode: isPAE ? .pae : .legacy32(largePages: true))
            // Windows has all four of PAE's directories.
            for address in stride(from: 0, to: 1 << 32, by: 1 << 30) { _ = tables.entryAddress(of: UInt64(address)) }
            tables.mapNew(Self.code, .kernelCode)
            tables.mapNew(Self.idt, .kernelData)
            for vector in 0..<256 { setGate(vector, level: [3, 0x2e].contains(vector) ? 3 : 0) }
            // NMI and the double fault have task gates.
            for vector in [2, 8] { tables.write(UInt64(0x8500_0050_0000), at: Self.idt + UInt64(vector) * 8) }
            if mapsItself { mapTables(of: tables.root) }
        }

        func setGate(_ vector: Int, level: UInt64, handler: UInt64 = code) {
            let place = handler + UInt64(vector) * 8
            let gate = place & 0xffff | 8 << 16 | (0x8e00 | level << 13) << 32 | (place >> 16) << 48
            tables.write(gate, at: Self.idt + UInt64(vector) * 8)
        }

        /// Enters the directories into the last of them.
        func mapTables(of root: UInt64) {
            if isPAE {
                let directories = (0..<4).map { ram.load(UInt64.self, at: root + $0 * 8) & ~0xfff }
                for (index, directory) in directories.enumerated() {
                    ram.store(directory | 3, at: directories[3] + UInt64(index) * 8)
                }
            } else {
                ram.store(UInt32(root) | 3, at: root + (Self.tableBase >> 22) * 4)
            }
        }

        /// Another process: directories of its own, the kernel's tables below them in common.
        func addProcess() {
            let root = ram.allocate()
            if isPAE {
                for index in 0..<4 as Range<UInt64> {
                    let directory = ram.allocate()
                    let original = ram.load(UInt64.self, at: tables.root + index * 8) & ~0xfff
                    for entry in 0..<512 as Range<UInt64> {
                        ram.store(ram.load(UInt64.self, at: original + entry * 8), at: directory + entry * 8)
                    }
                    ram.store(directory | 1, at: root + index * 8)
                }
            } else {
                for entry in 0..<1024 as Range<UInt64> {
                    ram.store(ram.load(UInt32.self, at: tables.root + entry * 4), at: root + entry * 4)
                }
            }
            mapTables(of: root)
        }

        func found() throws -> [ProcessorTables] { try TableSearch(ram.physical).processorTables() }
    }

    @Test("Root and interrupt table are found, once for all processes that share the kernel", arguments: [true, false])
    func found(isPAE: Bool) throws {
        let system = System(isPAE: isPAE)
        for _ in 0..<3 {
            let tables = try system.found()
            #expect(tables.map(\.control.cr3) == [system.tables.root])
            #expect(tables.map(\.idtBase.rawValue) == [System.idt])
            #expect(tables.allSatisfy { $0.isInferred && PagingMode($0.control) == system.tables.mode })
            system.addProcess()
        }
    }

    @Test(
        "Without tables that map themselves, and with a gate that is none, there is nothing", arguments: [true, false])
    func nothing(isPAE: Bool) throws {
        #expect(try System(isPAE: isPAE, mapsItself: false).found() == [])
        let lower = System(isPAE: isPAE)
        lower.setGate(14, level: 0, handler: 0x60_0000)
        #expect(try lower.found() == [])
        let open = System(isPAE: isPAE)
        open.setGate(13, level: 3)
        #expect(try open.found() == [])
        let absent = System(isPAE: isPAE)
        absent.tables.unmap(System.code)
        #expect(try absent.found() == [])
    }

    @Test("Where QEMU's TCG has marked PAE's pointers as accessed they are pointers all the same")
    func accessed() throws {
        let system = System(isPAE: true)
        for index in 0..<4 as Range<UInt64> {
            let place = system.tables.root + index * 8
            system.ram.store(system.ram.load(UInt64.self, at: place) | 1 << 5, at: place)
        }
        #expect(try system.found().map(\.control.cr3) == [system.tables.root])
        // Bit 6 is nobody's.
        let place = system.tables.root + 8
        system.ram.store(system.ram.load(UInt64.self, at: place) | 1 << 6, at: place)
        #expect(try system.found() == [])
    }
}
