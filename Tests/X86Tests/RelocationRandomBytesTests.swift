import TestSupport
import Testing
import X86

@Suite("Relocating arbitrary bytes") struct RelocationRandomBytesTests {
    /// Bytes that begin what depends on its address, or that stand before such.
    static let likely: [UInt8] = [
        0xe8, 0xe9, 0xeb, 0xe0, 0xe1, 0xe2, 0xe3, 0x70, 0x74, 0x7f, 0x0f, 0x84, 0x8d, 0x05, 0x0d, 0x15, 0x25, 0xff,
        0x48, 0x4c, 0x66, 0x67, 0x2e, 0xf2, 0xf0, 0xc4, 0xc5, 0x62, 0xcc, 0xc3, 0x50, 0x83, 0x8b, 0x89, 0xc7, 0xf8,
    ]

    @Test(
        "Whatever the bytes and wherever they lie, they are refused, or their copy means the same by decoding",
        arguments: [DecodingMode.long64, .protected32])
    func arbitrary(_ mode: DecodingMode) throws {
        var random = SeededGenerator(seed: mode == .long64 ? 1 : 2)
        var relocated = 0
        var refused: [String: Int] = [:]
        for _ in 0..<60_000 {
            let bytes = (0..<Int.random(in: 0...40, using: &random)).map { _ in
                Bool.random(using: &random)
                    ? Self.likely.randomElement(using: &random)! : UInt8.random(in: 0...255, using: &random)
            }
            let top: UInt64 = mode == .long64 ? .max : 0xffff_ffff
            // Now and then at either end of the address space.
            let addresses = [UInt64.random(in: 0...top, using: &random), 0, 1, top - 20, top - 41, 0x7fff_ffff]
            let address =
                Int.random(in: 0...3, using: &random) == 0 ? addresses.randomElement(using: &random)! : addresses[0]
            let copy = (address &+ UInt64.random(in: 0...0x9000_0000, using: &random)) & top
            do throws(PrologueRefusal) {
                let relocation = try PrologueRelocation(
                    of: bytes, at: address, mode: mode, covering: Int.random(in: -1...16, using: &random))
                _ = try relocation.bytes(at: copy)
                relocated += 1
                let differences = try? RelocationCheck.differences(relocation, at: copy)
                if differences != [] { Issue.record("\(bytes) at \(address), copied to \(copy): \(differences ?? [])") }
                for offset in -2...relocation.copyLength + 2 { _ = relocation.original(ofCopyOffset: offset) }
            } catch {
                refused[RelocationReason.of(error), default: 0] += 1
            }
        }
        print("relocation of random bytes, \(mode):", relocated, refused.sorted { $0.key < $1.key })
        #expect(relocated > 10_000)
        let everywhere: Set = [
            "already hooked", "ends early", "breakpoint", "undecodable", "truncated", "tells its address",
            "unsupported branch", "branch into replaced bytes",
        ]
        let only64: Set = ["out of reach", "truncated operand", "uses replaced bytes"]
        #expect(Set(refused.keys).subtracting(only64) == everywhere)
        #expect(only64.isDisjoint(with: refused.keys) == (mode == .protected32))
    }
}
