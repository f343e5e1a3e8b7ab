import GuestMemory
import TestSupport
import Testing
import WindowsGuest
import X86

@testable import Agents

@Suite("The catalog of instructions that may write page tables") struct PageTableWriterCatalogTests {
    /// `mov [rcx], rdx; ret` and the like: MiWritePte, MiExchangePte and MiChangePte as the compiler made them.
    private func places(of pattern: [UInt8], in file: KernelFile) throws -> [UInt64] {
        let text = try #require(file.image.section(named: ".text"))
        let start = file.image.address(rva: text.rva)
        let code = try file.memory.bytes(at: start, count: UInt64(text.virtualSize))
        return (0...code.count - pattern.count)
            .filter { Array(code[$0..<$0 + pattern.count]) == pattern }
            .map { (start + UInt64($0)).rawValue }
    }

    @Test(
        "Each bundled kernel has writers of all three kinds, each of which is where it is said to be",
        arguments: KernelFile.names)
    func bundled(_ name: String) throws {
        let file = try KernelFile(name)
        let catalog = try PageTableWriterCatalog(of: file.image, in: file.memory)
        #expect(catalog.missingBytes == 0)
        let decoder = InstructionDecoder(mode: .long64)
        for (end, writer) in catalog.candidates {
            let bytes = try file.memory.bytes(at: writer.address, count: UInt64(writer.length))
            let again = try #require(decoder.decode(bytes, at: writer.address.rawValue))
            #expect(PageTableWriter(again) == writer && writer.end == end)
            let section = try #require(file.image.section(containing: writer.address))
            #expect(section.isExecutable && !section.isDiscardable && section.name != "INIT")
        }
        for kind in PageTableWriter.Kind.allCases {
            #expect(catalog.candidates.values.contains { $0.kind == kind }, "\(kind)")
        }
        // The frame's code is a function of three instructions; LOCK CMPXCHG stands in a loop.
        let exchange = try places(of: [0x48, 0x87, 0x01], in: file)
        let store = try places(of: [0x48, 0x89, 0x11, 0xc3], in: file)
        if !name.contains("O0") {
            #expect(!exchange.isEmpty && !store.isEmpty)
            for place in exchange + store {
                #expect(catalog.candidates[GuestVirtualAddress(place + 3)]?.address.rawValue == place)
            }
        }
        #expect(file.image.exceptionDirectory != nil)
    }

    @Test("Garbage in the table of functions, and pages that are absent, only make the search less exact")
    func hostile() throws {
        let name = try #require(KernelFile.names.first { $0.contains("O2-direct") })
        let whole = try KernelFile(name)
        let expected = try PageTableWriterCatalog(of: whole.image, in: whole.memory).candidates.count
        for seed in 1...20 as ClosedRange<UInt64> {
            var random = SeededGenerator(seed: seed)
            let file = try KernelFile(name)
            let directory = try #require(file.image.exceptionDirectory)
            let garbage = (0..<Int(directory.size)).map { index in
                // Rows that look like rows, and others.
                index % 4 >= 2 && seed % 2 == 0 ? 0 : UInt8.random(in: 0...255, using: &random)
            }
            file.tables.write(garbage, at: file.image.address(rva: directory.rva).rawValue)
            let catalog = try PageTableWriterCatalog(of: file.image, in: file.memory)
            #expect(catalog.candidates.count > expected / 2)
            #expect(catalog.missingBytes == 0)
            file.ram.unmap()
        }
        let text = try #require(whole.image.section(named: ".text"))
        whole.tables.unmap(whole.image.address(rva: text.rva).rawValue)
        let partial = try PageTableWriterCatalog(of: whole.image, in: whole.memory)
        #expect(partial.missingBytes == 4096 && partial.candidates.count < expected)
    }
}
