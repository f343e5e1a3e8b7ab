import GuestMemory
import TestSupport
import Testing

@Suite("Byte patterns") struct BytePatternTests {
    func matches(_ pattern: [UInt16], _ bytes: [UInt8]) throws -> [Int] {
        let pattern = try BytePattern(pattern)
        return bytes.withUnsafeBytes { pattern.matches(in: $0) }
    }

    @Test("All matches are found: the first and the last possible one, and those that overlap")
    func all() throws {
        #expect(try matches([1, 1], [1, 1, 1, 0, 1, 1]) == [0, 1, 4])
        #expect(try matches([1, 2, 3], [1, 2, 3]) == [0])
        #expect(try matches([1, 2, 3], [1, 2]) == [])
        #expect(try matches([1], []) == [])
    }

    @Test("A wildcard matches any byte, also in front and at the end, and never one behind the end")
    func wildcards() throws {
        #expect(try matches([0x100, 7, 0x100], [7, 7, 9, 7]) == [0])
        #expect(try matches([7, 0x100], [1, 7]) == [])
    }

    @Test("Elements that are no bytes, nothing at all, and wildcards alone are no patterns")
    func invalid() {
        #expect(throws: BytePattern.Invalid.element(0x101, index: 1)) { try BytePattern([1, 0x101]) }
        #expect(throws: BytePattern.Invalid.empty) { try BytePattern([]) }
        #expect(throws: BytePattern.Invalid.onlyWildcards) { try BytePattern([0x100, 0x100]) }
        #expect(throws: BytePattern.Invalid.tooLong(4097)) { try BytePattern(Array(repeating: 1, count: 4097)) }
        #expect(throws: Never.self) { try BytePattern([0xff, 0x100]) }
    }

    @Test("The number of matches has a limit")
    func limit() throws {
        let pattern = try BytePattern([0])
        let found = [UInt8](repeating: 0, count: 1000).withUnsafeBytes { pattern.matches(in: $0, limit: 5) }
        #expect(found == [0, 1, 2, 3, 4])
    }

    @Test("The search finds what a naive one finds, in random bytes")
    func likeNaive() throws {
        var random = SeededGenerator(seed: 7)
        for _ in 0..<200 {
            let bytes = (0..<300).map { _ in UInt8.random(in: 0..<3, using: &random) }
            let elements = (0..<Int.random(in: 1...4, using: &random)).map { _ in
                random.next() & 3 == 0 ? BytePattern.wildcard : UInt16.random(in: 0..<3, using: &random)
            }
            guard let pattern = try? BytePattern(elements) else { continue }
            let naive = (0...(bytes.count - elements.count)).filter { start in
                elements.indices.allSatisfy { elements[$0] == 0x100 || UInt16(bytes[start + $0]) == elements[$0] }
            }
            #expect(bytes.withUnsafeBytes { pattern.matches(in: $0, limit: 1000) } == naive)
        }
    }

    @Test("A match that touches a missing page is none")
    func gaps() throws {
        let ram = SyntheticRAM(size: 1 << 16)
        let tables = PageTableBuilder(ram: ram)
        tables.mapNew(0xffff_f800_0000_0000, .kernelData)
        tables.write([9, 0], at: 0xffff_f800_0000_0ffe)
        tables.write([9, 0], at: 0xffff_f800_0000_0010)
        let bytes = try tables.memory.readPartial(
            at: GuestVirtualAddress(0xffff_f800_0000_0000), count: 8192, maximum: 8192)
        #expect(try BytePattern([9, 0, 0]).matches(in: bytes) == [0x10])
    }
}
