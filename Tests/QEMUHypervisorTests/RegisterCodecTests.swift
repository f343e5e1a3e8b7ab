import HypervisorInterface
import TestSupport
import Testing
import X86

@testable import QEMUHypervisor

/// A target description in the shape of QEMU 7.2's, and `g` packets to fit.
enum DescriptionSample {
    static let target = """
        <?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>\
        <architecture>i386:x86-64</architecture><xi:include href="i386-64bit.xml"/></target>
        """

    /// Names and widths in bits, in the packet's order.
    static let registers: [(String, Int)] =
        ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"].map { ($0, 64) } + (8...15).map { ("r\($0)", 64) }
        + [("rip", 64), ("eflags", 32)] + ["cs", "ss", "ds", "es", "fs", "gs"].map { ($0, 32) }
        + ["fs_base", "gs_base", "k_gs_base", "cr0", "cr2", "cr3", "cr4", "cr8", "efer"]
        .map { ($0, 64) } + (0..<8).map { ("st\($0)", 80) }
        + ["fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"].map { ($0, 32) }
        + (0..<16).map { ("xmm\($0)", 128) } + [("mxcsr", 32)]

    static var feature: String {
        let lines = registers.enumerated().map { index, register in
            "  <reg name=\"\(register.0)\" bitsize=\"\(register.1)\" type=\"int64\"\(index == 0 ? " regnum=\"0\"" : "")/>"
        }
        return """
            <?xml version="1.0"?>
            <!-- x86_64 64bit -->
            <!DOCTYPE target SYSTEM "gdb-target.dtd">
            <feature name="org.gnu.gdb.i386.core">
              <flags id="x64_eflags" size="4">
                <field name="" start="22" end="31"/>
                <field name="CF" start="0" end="0"/>
              </flags>
              <vector id="v4f" type="ieee_single" count="4"/>
              <!--reg name="cs_base" bitsize="64" type="int64"/>
              <reg name="ss_base" bitsize="64" type="int64"/-->
            \(lines.joined(separator: "\n"))
            </feature>
            """
    }

    static func annex(_ name: String) -> [UInt8] { Array((name == "target.xml" ? target : feature).utf8) }

    static func description() throws -> TargetDescription { try TargetDescription { annex($0) } }

    /// The packet that holds these registers, with `filler` where they say nothing.
    static func packet(_ registers: Registers, filler: UInt8 = 0xee) -> [UInt8] {
        let control = registers.control
        let values: [String: UInt64] = [
            "rax": registers.rax, "rbx": registers.rbx, "rcx": registers.rcx, "rdx": registers.rdx,
            "rsi": registers.rsi,
            "rdi": registers.rdi, "rbp": registers.rbp, "rsp": registers.rsp, "r8": registers.r8, "r9": registers.r9,
            "r10": registers.r10, "r11": registers.r11, "r12": registers.r12, "r13": registers.r13,
            "r14": registers.r14, "r15": registers.r15, "rip": registers.rip, "eflags": registers.rflags,
            "cs": UInt64(registers.cs), "ss": UInt64(registers.ss), "fs_base": registers.fsBase,
            "gs_base": registers.gsBase, "k_gs_base": registers.kernelGSBase, "cr0": control.cr0, "cr2": control.cr2,
            "cr3": control.cr3, "cr4": control.cr4, "cr8": control.cr8, "efer": control.efer,
        ]
        return self.registers.flatMap { name, bits -> [UInt8] in
            guard let value = values[name] else { return [UInt8](repeating: filler, count: bits / 8) }
            return (0..<bits / 8).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) }
        }
    }

    /// What a `P` packet does.
    static func set(_ number: Int, of registers: inout Registers, to bytes: [UInt8]) {
        var packet = packet(registers)
        let offset = self.registers[..<number].reduce(0) { $0 + $1.1 / 8 }
        packet.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        do { registers = try RegisterCodec(try description()).decode(packet) } catch { fatalError("\(error)") }
    }

    static func random(_ generator: inout SeededGenerator) -> Registers {
        var registers = Registers()
        let paths: [WritableKeyPath<Registers, UInt64>] = [
            \.rax, \.rbx, \.rcx, \.rdx, \.rsi, \.rdi, \.rbp, \.rsp, \.r8, \.r9, \.r10, \.r11, \.r12, \.r13, \.r14,
            \.r15,
            \.rip, \.fsBase, \.gsBase, \.kernelGSBase, \.control.cr0, \.control.cr2, \.control.cr3, \.control.cr4,
            \.control.cr8, \.control.efer,
        ]
        for path in paths { registers[keyPath: path] = generator.next() }
        registers.rflags = UInt64(UInt32.random(in: 0...UInt32.max, using: &generator))
        registers.cs = .random(in: 0...UInt16.max, using: &generator)
        registers.ss = .random(in: 0...UInt16.max, using: &generator)
        return registers
    }
}

@Suite("Registers over the wire") struct RegisterCodecTests {
    @Test("The description's includes are followed and its registers numbered and placed")
    func description() throws {
        let description = try DescriptionSample.description()
        #expect(description.registers.count == DescriptionSample.registers.count)
        #expect(description["rax"] == .init(number: 0, offset: 0, size: 8))
        #expect(description["rip"] == .init(number: 16, offset: 128, size: 8))
        #expect(description["eflags"] == .init(number: 17, offset: 136, size: 4))
        #expect(description["cs"] == .init(number: 18, offset: 140, size: 4))
        #expect(description["fs_base"] == .init(number: 24, offset: 164, size: 8))
        #expect(description["efer"] == .init(number: 32, offset: 228, size: 8))
        #expect(description["st1"] == .init(number: 34, offset: 246, size: 10))
        // QEMU 7.2's packet has 608 bytes.
        #expect(description["mxcsr"] == .init(number: 65, offset: 604, size: 4))
        #expect(description["ss_base"] == nil)
    }

    @Test("A register that gives its own number moves those behind it")
    func explicitNumber() throws {
        let text =
            "<target><reg name=\"a\" bitsize=\"32\"/><reg name=\"b\" bitsize=\"64\" regnum=\"9\"/><reg name=\"c\" bitsize=\"8\"/></target>"
        let description = try TargetDescription { _ in Array(text.utf8) }
        #expect(description["a"] == .init(number: 0, offset: 0, size: 4))
        #expect(description["b"] == .init(number: 9, offset: 4, size: 8))
        #expect(description["c"] == .init(number: 10, offset: 12, size: 1))
    }

    @Test("A description that includes itself ends, and nonsense describes nothing")
    func hostile() throws {
        let endless = "<target><xi:include href=\"target.xml\"/><xi:include href=\"target.xml\"/></target>"
        #expect(try TargetDescription { _ in Array(endless.utf8) }.registers.isEmpty)
        for text in [
            "", "nonsense", "<target><reg name=\"a\"/><reg bitsize=\"64\"/></target>",
            "<reg name=\"a\" bitsize=\"-8\"/>",
        ] {
            #expect(try TargetDescription { _ in Array(text.utf8) }.registers.isEmpty)
        }
    }

    @Test("A description's numbers, however large, do no harm")
    func largeNumber() throws {
        let text = "<target><reg name=\"a\" bitsize=\"32\" regnum=\"9223372036854775806\"/></target>"
        #expect(try TargetDescription { _ in Array(text.utf8) }["a"]?.number == .max - 1)
    }

    @Test("A processor without long mode has eight registers of 32 bits, under their own names")
    func i386() throws {
        // As qemu-system-i386 7.2 describes it.
        let names =
            ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip", "eflags"]
            + ["cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base", "k_gs_base"]
            + ["cr0", "cr2", "cr3", "cr4", "cr8", "efer"]
        let text = "<target>\(names.map { "<reg name=\"\($0)\" bitsize=\"32\"/>" }.joined())</target>"
        let codec = RegisterCodec(try TargetDescription { _ in Array(text.utf8) })
        let packet: [UInt8] = names.indices.flatMap { index -> [UInt8] in [UInt8(index + 1), 0, 0, 0x80] }
        func value(_ name: String) throws -> UInt64 {
            UInt64(try #require(names.firstIndex(of: name)) + 1) | 0x8000_0000
        }
        let registers = try codec.decode(packet)
        #expect(try registers.rax == value("eax") && registers.rbx == value("ebx"))
        #expect(try registers.rsp == value("esp") && registers.rip == value("eip"))
        #expect(try registers.fsBase == value("fs_base") && registers.processorRegion == registers.fsBase)
        #expect(try registers.control.cr3 == value("cr3") && registers.r8 == 0 && registers.r15 == 0)
        var changed = registers
        changed.rbx = 5
        changed.r9 = 5
        let change = RegisterCodec.Change(number: 3, value: 5, size: 4)
        #expect(codec.changes(from: registers, to: changed) == [change])
        #expect(throws: HypervisorError.self) { try codec.decode(Array(packet.dropLast(8))) }
    }

    @Test("Registers are decoded from where the description says they are")
    func decodes() throws {
        let codec = RegisterCodec(try DescriptionSample.description())
        var generator = SeededGenerator(seed: 3)
        for _ in 0..<20 {
            let registers = DescriptionSample.random(&generator)
            #expect(try codec.decode(DescriptionSample.packet(registers)) == registers)
        }
    }

    @Test("A packet that is too short, or a description without a register, is an error")
    func short() throws {
        let codec = RegisterCodec(try DescriptionSample.description())
        let packet = DescriptionSample.packet(Registers())
        for length in [0, 1, 235] {
            #expect(throws: HypervisorError.self) { try codec.decode(Array(packet.prefix(length))) }
        }
        // Vectors may be missing: nothing reads them.
        #expect(throws: Never.self) { try codec.decode(Array(packet.prefix(236))) }
        let other = try TargetDescription { _ in Array("<target><reg name=\"r0\" bitsize=\"32\"/></target>".utf8) }
        #expect(throws: HypervisorError.self) { try RegisterCodec(other).decode(packet) }
    }

    /// A packet with these vector registers, and other bytes in all others.
    private static func packet(_ vectors: VectorRegisters) throws -> [UInt8] {
        var packet = DescriptionSample.packet(Registers())
        let description = try DescriptionSample.description()
        for (number, bytes) in RegisterCodec(description).writes(of: vectors) {
            let offset = DescriptionSample.registers[..<number].reduce(0) { $0 + $1.1 / 8 }
            packet.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        }
        return packet
    }

    @Test("Vector registers come back as they were written, low half first")
    func vectors() throws {
        let codec = RegisterCodec(try DescriptionSample.description())
        var vectors = GuardianMessageTests.vectors
        vectors.xmm5 = SIMD2(0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09)
        let writes = codec.writes(of: vectors)
        // XMM0 to XMM5, then MXCSR; 16 bytes each, and four.
        #expect(writes.map(\.number) == [49, 50, 51, 52, 53, 54, 65])
        #expect(writes.map(\.bytes.count) == [16, 16, 16, 16, 16, 16, 4])
        #expect(writes[5].bytes == Array(1...16) && writes[6].bytes == [0xa0, 0x1f, 0, 0])
        #expect(try codec.decodeVectors(Self.packet(vectors)) == vectors)
        // What a write of them must not change: all else of the packet.
        #expect(try codec.decode(Self.packet(vectors)) == codec.decode(DescriptionSample.packet(Registers())))
    }

    @Test("A packet without vector registers, or a description with others, is an error and not half an answer")
    func missingVectors() throws {
        let codec = RegisterCodec(try DescriptionSample.description())
        let packet = DescriptionSample.packet(Registers())
        for length in [0, 236, 607] {
            #expect(throws: HypervisorError.self) { try codec.decodeVectors(Array(packet.prefix(length))) }
        }
        #expect(throws: Never.self) { try codec.decodeVectors(packet) }
        for (from, to) in [("xmm3\" bitsize=\"128", "xmm3\" bitsize=\"64"), ("name=\"xmm0\"", "name=\"ymm0\"")] {
            let text = DescriptionSample.feature.replacing(from, with: to)
            let other = RegisterCodec(
                try TargetDescription { $0 == "target.xml" ? DescriptionSample.annex($0) : Array(text.utf8) })
            #expect(throws: HypervisorError.self) { try other.decodeVectors(packet) }
        }
        let none = RegisterCodec(try TargetDescription { _ in Array("<target></target>".utf8) })
        #expect(none.writes(of: VectorRegisters()).isEmpty)
    }

    @Test("Only the general registers that differ are written back")
    func changes() throws {
        let codec = RegisterCodec(try DescriptionSample.description())
        var generator = SeededGenerator(seed: 5)
        let old = DescriptionSample.random(&generator)
        #expect(codec.changes(from: old, to: old) == [])
        var new = old
        new.rip ^= 1
        new.rflags ^= 0x40
        new.r15 ^= 1 << 63
        // Not written back: these say where the vCPU is, not what it computes.
        new.cs ^= 1
        new.gsBase ^= 1
        new.control.cr3 ^= 0x1000
        #expect(
            Set(codec.changes(from: old, to: new).map(\.number)) == [15, 16, 17])
        let flags = codec.changes(from: old, to: new).first { $0.number == 17 }
        #expect(flags == .init(number: 17, value: new.rflags, size: 4))
    }
}
