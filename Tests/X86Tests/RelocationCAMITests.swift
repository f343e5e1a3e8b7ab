import Foundation
import TestSupport
import Testing
import WindowsGuest
import X86

@Suite("Relocating the CAMI functions' prologues", .enabled(if: SharedData.functions != nil)) struct RelocationCAMITests
{
    static let fillings = 16

    struct Count: Equatable {
        var patterns = 0
        var relocated = 0
        var refused: [String: Int] = [:]
    }

    /// The mnemonics and lengths of a prologue's instructions, as far as a jump would replace them.
    static func shape(_ bytes: [UInt8], at address: UInt64, mode: DecodingMode) -> [String] {
        let decoder = InstructionDecoder(mode: mode)
        var shape: [String] = []
        var offset = 0
        while offset < PrologueRelocation.jumpLength {
            guard let instruction = decoder.decode(bytes.dropFirst(offset), at: address + UInt64(offset)) else {
                return shape + ["none"]
            }
            shape.append("\(instruction.mnemonic) \(instruction.length)")
            offset += Int(instruction.length)
        }
        return shape
    }

    /// The pattern's bytes with wildcards filled as the functions have them: distances and, where a pattern leaves
    /// all of an instruction but its REX open (5 bytes, as its comment says), mov [rsp+40h], reg.
    static func usual(_ elements: [UInt16]) -> [UInt8] {
        var bytes = elements.map { $0 == 0x100 ? UInt8(0x40) : UInt8($0) }
        if elements.count > 5, elements[1...4].allSatisfy({ $0 == 0x100 }), bytes[0] & 0xf0 == 0x40 {
            bytes.replaceSubrange(1...4, with: [0x89, 0x44, 0x24, 0x40])
        }
        return bytes
    }

    /// Relocates every pattern's bytes, the wildcards filled several times.
    static func count(is64Bit: Bool) throws -> Count {
        let mode: DecodingMode = is64Bit ? .long64 : .protected32
        let address: UInt64 = is64Bit ? 0xffff_f801_2345_6780 : 0x8245_6780
        let copy = address + 0x21_0884
        var random = SeededGenerator(seed: is64Bit ? 64 : 32)
        var count = Count()
        for file in try FunctionPatterns.load(path: try #require(SharedData.functions)) where file.is64Bit == is64Bit {
            for pattern in file.patterns {
                count.patterns += 1
                let name = "\(file.name), builds \(pattern.builds)"
                let expected = shape(usual(pattern.bytes.elements), at: address, mode: mode)
                #expect(!expected.contains("none"), "\(name)")
                var filled = 0
                for _ in 0..<1_000_000 where filled < fillings {
                    let bytes = pattern.bytes.elements.map {
                        $0 == 0x100 ? UInt8.random(in: 0...255, using: &random) : UInt8($0)
                    }
                    guard shape(bytes, at: address, mode: mode) == expected else { continue }
                    filled += 1
                    do throws(PrologueRefusal) {
                        let relocation = try PrologueRelocation(of: bytes, at: address, mode: mode)
                        _ = try relocation.bytes(at: copy)
                        #expect((try? RelocationCheck.differences(relocation, at: copy)) == [], "\(name)")
                        count.relocated += 1
                    } catch {
                        count.refused[RelocationReason.of(error), default: 0] += 1
                    }
                }
                #expect(filled == fillings, "\(name): \(filled) fillings of the shape \(expected)")
            }
        }
        print("relocation of CAMI prologues, \(is64Bit ? 64 : 32) bits:", count)
        return count
    }

    /// The only refusals are fillings whose random distances make a jump of the function's body lead into its
    /// first bytes, as no kernel's does; the seeds make them the same each time.
    @Test("All 203 patterns of 64-bit functions are relocated") func long64() throws {
        let expected = Count(patterns: 203, relocated: 3239, refused: ["branch into replaced bytes": 9])
        #expect(try Self.count(is64Bit: true) == expected)
    }

    @Test("All 148 patterns of 32-bit functions are relocated") func protected32() throws {
        let expected = Count(patterns: 148, relocated: 2352, refused: ["branch into replaced bytes": 16])
        #expect(try Self.count(is64Bit: false) == expected)
    }
}
