import Foundation
import GuestMemory
import TestSupport
import Testing
import WindowsGuest

@Suite("Pattern files") struct PatternFileTests {
    static let good = """
        ---
        !intro_update_win_function
        name: NtExample
        guest64: True
        patterns:
            -
                !intro_update_win_pattern
                section_hint: PAGELK
                min_ver: 7600
                max_ver: 8000
                pattern: !code_pattern
                    code:
                        - [0x48, 0x89, 0x5c, 0x24, 0x100]     # mov qword ptr [rsp+8], rbx
                        - [0x55]
        """

    @Test("A file's name, bitness, builds, hint and bytes are read")
    func parse() throws {
        let file = try FunctionPatterns(yaml: Self.good, source: "good.yaml")
        #expect(file.name == "NtExample" && file.is64Bit && file.patterns.count == 1)
        #expect(file.patterns[0].builds == 7600...8000 && file.patterns[0].sectionHint == "PAGELK")
        #expect(file.patterns[0].bytes.elements == [0x48, 0x89, 0x5c, 0x24, 0x100, 0x55])
        let open = try FunctionPatterns(
            yaml: Self.good.replacingOccurrences(of: "min_ver: 7600", with: "min_ver: WIN_PATTERN_MIN_VERSION_ANY"),
            source: "open.yaml")
        #expect(open.patterns[0].builds == 0...8000)
        #expect(file.patterns(forBuild: 8001).isEmpty && file.patterns(forBuild: 7600).count == 1)
    }

    @Test(
        "What is no pattern file is refused with the file's name",
        arguments: [
            ("", ""), ("!intro_update_win_function", "!something_else"), ("name: NtExample", "name:"),
            ("guest64: True", "guest64: maybe"), ("min_ver: 7600", "min_ver: 9000"), ("min_ver: 7600", "min_ver: -1"),
            ("[0x55]", "[x]"), ("[0x55]", "[0x10000]"), ("[0x55]", "0x55"), ("patterns:", "other:"), ("---", "{{{"),
        ])
    func refused(what: String, with: String) throws {
        let text = what.isEmpty ? "" : Self.good.replacingOccurrences(of: what, with: with)
        let error = try #require(throws: PatternFileError.self) { try FunctionPatterns(yaml: text, source: "bad.yaml") }
        #expect(error.source == "bad.yaml" && !error.problem.isEmpty)
    }

    @Test("A pattern whose elements are no bytes is set aside, and said; the others stay")
    func setAside() throws {
        let file = try FunctionPatterns(
            yaml: Self.good.replacingOccurrences(of: "0x100]", with: "0x101]"), source: "good.yaml")
        #expect(file.patterns.isEmpty)
        #expect(
            file.rejected == [
                "pattern 0 of NtExample: element 4 of a pattern is 257, neither a byte nor the wildcard 256"
            ])
        #expect(try FunctionPatterns(yaml: Self.good, source: "good.yaml").rejected.isEmpty)
    }

    @Test(
        "What would take a parser too deep, or without an end, is refused before it is parsed",
        arguments: [
            String(repeating: "[", count: 100_000), String(repeating: "{a: ", count: 100_000),
            String(repeating: "- ", count: 100_000), String(repeating: "? ", count: 100_000),
            "a: &a [1, 1]\nb: &b [*a, *a]\n", "- &x [*x]",
            (0..<1000).map { String(repeating: " ", count: $0) + "a:" }.joined(separator: "\n"),
        ])
    func bounds(text: String) {
        #expect(throws: PatternFileError.self) { try FunctionPatterns(yaml: text, source: "deep.yaml") }
    }

    @Test("A path that is not there is refused")
    func missing() {
        #expect(throws: PatternFileError.self) { try FunctionPatterns.load(path: "/nonexistent") }
    }
}

@Suite("The CAMI function files", .enabled(if: SharedData.functions != nil)) struct CAMITests {
    let files: [FunctionPatterns]

    init() throws { files = try FunctionPatterns.load(path: try #require(SharedData.functions)) }

    @Test("All files parse, and the power function has seven patterns for each bitness")
    func parse() throws {
        let folder = try FileManager.default.contentsOfDirectory(atPath: try #require(SharedData.functions))
        #expect(files.count == folder.count { $0.hasSuffix(".yaml") })
        #expect(files.count == 44)
        #expect(files.flatMap(\.rejected).count == 1)
        for is64Bit in [true, false] {
            let file = try #require(files.first { $0.name == "NtSetSystemPowerState" && $0.is64Bit == is64Bit })
            #expect(file.patterns.count == 7)
            #expect(file.patterns(forBuild: 17763).count == 6 && file.patterns(forBuild: 7601).count == 1)
        }
    }

    @Test("Each pattern of the power function, its wildcards filled at random, is found at its place and only there")
    func materialised() throws {
        var random = SeededGenerator(seed: 17763)
        let file = try #require(files.first { $0.name == "NtSetSystemPowerState" && $0.is64Bit })
        for pattern in file.patterns {
            let bytes = pattern.bytes.elements.map {
                $0 == 0x100 ? UInt8.random(in: 0...255, using: &random) : UInt8($0)
            }
            let guest = SyntheticKernel {
                $0.build = pattern.builds.lowerBound
                $0.powerFunctionPrologue = bytes
            }
            let function = try guest.locatePowerFunction(patterns: files)
            #expect(function.address == guest.guestAddress("NtSetSystemPowerState"))
            #expect(function.isConfirmed)
            // Alone, too, where ntdll does not help.
            for process in guest.processes.dropFirst() { process.tables.write(UInt64(0), at: process.peb + 0x18) }
            #expect(try guest.locatePowerFunction(patterns: files).foundBy == [.pattern])
            guest.ram.unmap()
        }
    }

    @Test("In generated kernels of both widths each is found uniquely, and is ambiguous where it is there twice")
    func generated() throws {
        var random = SeededGenerator(seed: 7600)
        let ram = SyntheticRAM(size: ShapedKernel.memorySize)
        defer { ram.unmap() }
        var placed = 0
        for file in files where file.name == "NtSetSystemPowerState" {
            for pattern in file.patterns {
                var shape = file.is64Bit ? KernelShape() : KernelShape.windows7x86(pae: placed % 2 == 0)
                shape.build = pattern.builds.lowerBound
                shape.codeSeed = random.next()
                shape.sectionOrder.shuffle(using: &random)
                // Also where no section has the hint's name.
                if placed % 3 == 0 { shape.sectionNames = [String](repeating: "", count: 6) }
                shape.mark = pattern.bytes.elements.map {
                    $0 == 0x100 ? UInt8.random(in: 0...255, using: &random) : UInt8($0)
                }
                placed += 1
                ram.reset()
                var guest = ShapedKernel(shape, ram: ram)
                let found = try locate(guest)
                #expect(found.address == guest.powerFunction && found.isConfirmed)
                // Alone, where the system has started no program yet.
                shape.damage = .noNtdll
                ram.reset()
                guest = ShapedKernel(shape, ram: ram)
                #expect(try locate(guest).foundBy == [.pattern])
                shape.decoys = [.doublePattern]
                ram.reset()
                guest = ShapedKernel(shape, ram: ram)
                let error = try #require(throws: DiscoveryError.self) { try locate(guest) }
                guard case .ambiguous(_, let candidates) = error else {
                    Issue.record("\(error)")
                    continue
                }
                #expect(candidates.sorted() == [guest.guestAddress("PopSimilar"), guest.powerFunction].sorted())
            }
        }
        #expect(placed == 14)
    }

    private func locate(_ guest: ShapedKernel) throws(DiscoveryError) -> PowerFunction {
        let kernel = try KernelLocator(physical: guest.ram.physical).locate(among: guest.processorTables)
        let list = ProcessList(of: kernel, offsets: try KernelOffsets(of: kernel))
        return try PowerFunctionLocator(of: kernel, processes: try list.processes(), patterns: files).locate()
    }

    @Test("No pattern of the power function matches in random bytes")
    func nowhere() throws {
        var random = SeededGenerator(seed: 1)
        var bytes = [UInt8](repeating: 0, count: 1 << 22)
        for index in bytes.indices { bytes[index] = UInt8(truncatingIfNeeded: random.next()) }
        for file in files where file.name == "NtSetSystemPowerState" {
            for pattern in file.patterns {
                #expect(bytes.withUnsafeBytes { pattern.bytes.matches(in: $0) }.isEmpty)
            }
        }
    }
}
