import Foundation
import TestSupport
import Testing
import WindowsGuest

@Suite("Guests and files that are made to harm") struct HostileInputTests {
    static let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .appendingPathComponent("../../Fuzzing/KernelCorpus").standardizedFileURL

    static func corpus(_ kind: HostileInput.Kind) throws -> [URL] {
        try FileManager.default.contentsOfDirectory(
            at: folder.appendingPathComponent(kind.rawValue), includingPropertiesForKeys: nil
        ).sorted { $0.path < $1.path }
    }

    @Test("What the fuzzers start from, and what they have found, ends well", arguments: HostileInput.Kind.allCases)
    func corpora(kind: HostileInput.Kind) throws {
        let ram = SyntheticRAM(size: ShapedKernel.memorySize)
        defer { ram.unmap() }
        let files = try Self.corpus(kind)
        #expect(files.count >= 7)
        for file in files { HostileInput.run(kind, [UInt8](try Data(contentsOf: file)), ram: ram) }
    }

    @Test("Changes drawn from seeds to files of the corpora end well", arguments: HostileInput.Kind.allCases)
    func changes(kind: HostileInput.Kind) throws {
        let ram = SyntheticRAM(size: ShapedKernel.memorySize)
        defer { ram.unmap() }
        var random = SeededGenerator(seed: 3)
        let files = try Self.corpus(kind).map { [UInt8](try Data(contentsOf: $0)) }
        for _ in 0..<200 {
            var bytes = files.randomElement(using: &random)!
            if kind == .guest {
                bytes += (0..<8 * Int.random(in: 1...32, using: &random)).map { _ in
                    UInt8.random(in: 0...255, using: &random)
                }
            }
            for _ in 0..<Int.random(in: 1...8, using: &random) where !bytes.isEmpty {
                // Headers more often than contents.
                let end = Bool.random(using: &random) ? min(bytes.count, 0x200) : bytes.count
                bytes[Int.random(in: 0..<end, using: &random)] = [0, 1, 0x7f, 0x80, 0xff].randomElement(using: &random)!
            }
            HostileInput.run(kind, bytes, ram: ram)
        }
    }
}
