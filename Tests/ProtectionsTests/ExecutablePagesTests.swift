import GuestMemory
import TestSupport
import Testing
import WindowsGuest

@testable import Protections

@Suite("The executable pages of a process") struct ExecutablePagesTests {
    private static let code: UInt64 = 0x40_1000
    private static let data: UInt64 = 0x40_2000
    private static let large: UInt64 = 0x4000_0000
    private static let kernel: UInt64 = 0x8260_0000

    private func space(_ mode: PagingMode) -> PageTableBuilder {
        let tables = PageTableBuilder(ram: SyntheticRAM(size: 1 << 20), mode: mode)
        tables.mapNew(Self.code, .userCode)
        tables.mapNew(Self.data, mode.entriesCanForbidExecution ? .userData : [.present, .writable, .user])
        tables.map(Self.large, to: 0, .userCode, level: 2)
        tables.mapNew(Self.kernel, .kernelCode)
        return tables
    }

    private func pages(_ tables: PageTableBuilder) throws -> (pages: [UInt64], canForbid: Bool) {
        let found = try ExecutablePages(KernelMemory(tables.memory))
        #expect(!found.isTruncated)
        return (found.pages.map(\.rawValue), found.canForbid)
    }

    private func range(_ start: UInt64, _ size: UInt64) -> [UInt64] {
        Array(stride(from: start, to: start + size, by: 4096))
    }

    @Test("PAE: pages of the lower half that no entry forbids to be executed, large ones among them")
    func pae() throws {
        let found = try pages(space(.pae))
        #expect(found.pages == [Self.code] + range(Self.large, 2 << 20) && found.canForbid)
    }

    @Test("Without PAE no entry forbids anything: all of the process's pages, and that is said")
    func legacy() throws {
        let found = try pages(space(.legacy32(largePages: true)))
        #expect(found.pages == [Self.code, Self.data] + range(Self.large, 4 << 20) && !found.canForbid)
    }

    @Test("A directory that is its own child, and pointers to nowhere, are an end, not a trap")
    func hostile() throws {
        let tables = space(.pae)
        let directory = tables.ram.load(UInt64.self, at: tables.root) & ~0xfff
        tables.ram.store(directory | 7, at: directory + 16 * 8)
        tables.ram.store(UInt64(0x000f_ffff_ffff_f001), at: tables.root + 8)
        #expect(try pages(tables).pages.first == Self.code)
    }
}
