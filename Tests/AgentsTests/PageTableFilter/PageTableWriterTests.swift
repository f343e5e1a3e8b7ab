import GuestMemory
import TestSupport
import Testing
import X86

@testable import Agents

@Suite("Instructions that write page tables") struct PageTableWriterTests {
    static func writer(_ bytes: [UInt8], at address: UInt64 = 0xffff_f800_0000_1000) -> PageTableWriter? {
        InstructionDecoder(mode: .long64).decode(bytes, at: address).flatMap { PageTableWriter($0) }
    }

    @Test("Every form is understood as it was made")
    func forms() throws {
        var random = SeededGenerator(seed: 3)
        for _ in 0..<2000 {
            let encoder = WriterEncoder.random(&random)
            let writer = try #require(Self.writer(encoder.bytes), "\(encoder)")
            #expect(Int(writer.length) == encoder.bytes.count)
            #expect(writer.base == encoder.base && writer.index == encoder.index)
            #expect(writer.scale == 1 << (encoder.index == nil ? 0 : encoder.shift))
            #expect(writer.displacement == encoder.displacement)
            switch encoder.operation {
            case .moveRegister: #expect(writer.kind == .move && writer.source == .register(encoder.source))
            case .moveImmediate: #expect(writer.kind == .move && writer.source == .immediate(encoder.immediate))
            case .exchange: #expect(writer.kind == .exchange && writer.source == .register(encoder.source))
            case .compareExchange:
                #expect(writer.kind == .compareExchange && writer.source == .register(encoder.source))
            }
        }
    }

    static let refused: [(String, [UInt8])] = [
        ("mov [rsp], rax", [0x48, 0x89, 0x04, 0x24]),
        ("mov [rsp+rcx*8], rax", [0x48, 0x89, 0x04, 0xcc]),
        ("mov [rip+8], rax", [0x48, 0x89, 0x05, 8, 0, 0, 0]),
        ("mov [0x1000], rax", [0x48, 0x89, 0x04, 0x25, 0, 0x10, 0, 0]),
        ("movabs [imm64], rax", [0x48, 0xa3, 0, 0, 0, 0, 0, 0xf8, 0xff, 0xff]),
        ("mov gs:[rax], rcx", [0x65, 0x48, 0x89, 0x08]),
        ("mov fs:[rax], rcx", [0x64, 0x48, 0x89, 0x08]),
        ("mov [eax], rcx", [0x67, 0x48, 0x89, 0x08]),
        ("mov [rax], ecx", [0x89, 0x08]),
        ("mov [rax], cl", [0x88, 0x08]),
        ("mov [rax], rsp", [0x48, 0x89, 0x20]),
        ("xchg [rax], rsp", [0x48, 0x87, 0x20]),
        ("mov rcx, [rax]", [0x48, 0x8b, 0x08]),
        ("mov rcx, rax", [0x48, 0x89, 0xc1]),
        ("or [rax], rcx", [0x48, 0x09, 0x08]),
        ("mov [rax], ds", [0x48, 0x8c, 0x18]),
        ("cmpxchg16b [rax]", [0x48, 0x0f, 0xc7, 0x08]),
        ("movnti [rax], rcx", [0x48, 0x0f, 0xc3, 0x08]),
        ("movq [rax], xmm0", [0x66, 0x0f, 0xd6, 0x00]),
        ("int3", [0xcc]),
    ]

    @Test("What the filter could not perform is none", arguments: refused)
    func refuses(_ name: String, _ bytes: [UInt8]) { #expect(Self.writer(bytes) == nil) }

    @Test("Segment prefixes that mean nothing in long mode do not matter")
    func ignoredSegments() {
        for prefix in [0x26, 0x2e, 0x36, 0x3e] as [UInt8] {
            #expect(Self.writer([prefix, 0x48, 0x89, 0x08])?.base == 0)
        }
    }

    @Test("The patch is one instruction of the same length, INT 20, for every length")
    func patch() throws {
        for displacement in [0, 8, 0x1000] as [Int32] {
            for operation in WriterEncoder.Operation.allCases {
                let bytes = WriterEncoder(operation: operation, base: 13, index: 9, displacement: displacement).bytes
                let writer = try #require(Self.writer(bytes))
                #expect(writer.patch.count == bytes.count)
                let patched = try #require(
                    InstructionDecoder(mode: .long64).decode(writer.patch, at: writer.address.rawValue))
                #expect(patched.mnemonic == .int && patched.nextAddress == writer.end.rawValue)
                #expect(patched.operands[0].immediate == 20)
            }
        }
    }

    @Test("An address is made of base, index and displacement, and wraps")
    func addresses() throws {
        var registers = Registers()
        registers.r13 = 0xffff_ffff_ffff_fff0
        registers.r9 = 0x10
        let bytes = WriterEncoder(
            operation: .moveRegister, base: 13, index: 9, shift: 3, displacement: -8, source: 1
        ).bytes
        #expect(Self.writer(bytes)?.effectiveAddress(registers).rawValue == 0x68)
        for (number, path) in [
            \Registers.rax, \.rcx, \.rdx, \.rbx, \.rsp, \.rbp, \.rsi, \.rdi, \.r8, \.r9, \.r10, \.r11, \.r12, \.r13,
            \.r14, \.r15,
        ].enumerated() {
            var registers = Registers()
            registers[keyPath: path] = 5
            #expect((0..<16).map { registers.general($0) } == (0..<16).map { $0 == number ? 5 : 0 })
        }
    }

    @Test("Only what may change the registers of its own address says so")
    func changes() {
        // xchg [rax], rax; xchg [rcx+rax*8], rax; cmpxchg [rax], rcx; mov [rax], rax; cmpxchg [rcx], rcx
        #expect(Self.writer([0x48, 0x87, 0x00])?.changesItsAddress == true)
        #expect(Self.writer([0x48, 0x87, 0x04, 0xc1])?.changesItsAddress == true)
        #expect(Self.writer([0xf0, 0x48, 0x0f, 0xb1, 0x08])?.changesItsAddress == true)
        #expect(Self.writer([0x48, 0x89, 0x00])?.changesItsAddress == false)
        #expect(Self.writer([0xf0, 0x48, 0x0f, 0xb1, 0x09])?.changesItsAddress == false)
        #expect(Self.writer([0x48, 0x87, 0x01])?.changesItsAddress == false)
    }
}
