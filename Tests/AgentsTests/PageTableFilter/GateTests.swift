import GuestMemory
import HypervisorInterface
import TestSupport
import Testing
import WindowsGuest
import X86

@testable import Agents

@Suite("The vector that leads to an agent") struct GateTests {
    static let code: UInt64 = 0x8e00 << 32 | 0x10 << 16

    private func kernel() throws -> (SyntheticKernel, WindowsKernel, ProcessorTables) {
        let guest = SyntheticKernel()
        let tables = Self.tables(guest, idt: guest.idtBase)
        return (guest, try KernelLocator(physical: guest.ram.physical).locate(tables), tables)
    }

    private static func tables(_ guest: SyntheticKernel, idt: UInt64) -> ProcessorTables {
        ProcessorTables(
            control: ControlRegisters(cr0: 0x8005_0033, cr3: guest.cr3, cr4: 0x0035_06f8, efer: 0xd01),
            idtBase: GuestVirtualAddress(idt), idtLimit: guest.idtLimit, gdtBase: GuestVirtualAddress(0),
            gdtLimit: 0x57)
    }

    private static func low(_ handler: UInt64, _ rest: UInt64 = code) -> UInt64 {
        rest | handler & 0xffff | (handler >> 16 & 0xffff) << 48
    }

    @Test("A gate as the kernel's own are leads to its handler")
    func good() throws {
        let (guest, kernel, tables) = try kernel()
        let handler = try InterruptGateCheck.handler(of: 20, on: [tables, tables], in: kernel)
        #expect(handler.rawValue == guest.address("KiTrap20"))
        #expect(throws: InterruptGateError.noProcessor) { try InterruptGateCheck.handler(of: 20, on: [], in: kernel) }
    }

    /// What is cleared and set in vector 20's gate, and a word of the sentence that says so.
    static let flaws: [(clear: UInt64, set: UInt64, word: String)] = [
        (.max, 0, "no gate"),
        (1 << 47, 0, "no gate"),
        (0, 1 << 40, "trap gate"),
        (0xf << 40, 0xc << 40, "no gate"),
        (0, 3 << 45, "privilege level"),
        (0, 2 << 32, "stack 2"),
        (0xffff << 16, 0x18 << 16, "code segment"),
        (0xffff, 0x8000, "outside"),
    ]

    @Test("Any other gate is refused with a sentence", arguments: flaws.indices)
    func flawed(_ index: Int) throws {
        let (guest, kernel, tables) = try kernel()
        let flaw = Self.flaws[index]
        guest.write(
            Self.low(guest.address("KiTrap20")) & ~flaw.clear | flaw.set, at: guest.idtBase + 20 * 16)
        let error = #expect(throws: InterruptGateError.self) {
            try InterruptGateCheck.handler(of: 20, on: [tables], in: kernel)
        }
        let sentence = error.map { "\($0)" } ?? ""
        #expect(sentence.contains(flaw.word) && sentence.contains("vector 20"), "\(sentence)")
    }

    @Test("Every vCPU's table is looked at")
    func processors() throws {
        let (guest, kernel, tables) = try kernel()
        let second: UInt64 = 0xffff_f806_4902_0000
        guest.tables.mapNew(second, .kernelData)
        let other = Self.tables(guest, idt: second)
        #expect(throws: InterruptGateError.self) {
            try InterruptGateCheck.handler(of: 20, on: [tables, other], in: kernel)
        }
        for vector in [14, 20] as [UInt64] {
            guest.write(Self.low(guest.address("KiTrap\(vector)")), at: second + vector * 16)
            guest.write(guest.address("KiTrap\(vector)") >> 32, at: second + vector * 16 + 8)
        }
        #expect(throws: Never.self) { try InterruptGateCheck.handler(of: 20, on: [tables, other], in: kernel) }
        guest.write(Self.low(guest.address("KiTrap21")), at: second + 20 * 16)
        let error = #expect(throws: InterruptGateError.self) {
            try InterruptGateCheck.handler(of: 20, on: [tables, other], in: kernel)
        }
        guard case .different = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        let absent = Self.tables(guest, idt: 0xffff_f806_5000_0000)
        #expect(throws: InterruptGateError.self) {
            try InterruptGateCheck.handler(of: 20, on: [tables, absent], in: kernel)
        }
    }

    static let handler = GuestVirtualAddress(0xffff_f800_0000_1140)
    static let target = GuestVirtualAddress(0x1122_3344_5566_7788)

    private func patch(_ code: [UInt8], at handler: GuestVirtualAddress = handler) throws(InterruptGateError)
        -> GatePatch
    {
        let filled = code + [UInt8](repeating: 0xcc, count: max(0, 32 - code.count))
        return try GatePatch(handler: handler, target: Self.target, code: filled)
    }

    @Test("The jump is an instruction of 14 bytes to the target")
    func jump() throws {
        let patch = try patch([
            0x48, 0x83, 0xec, 0x08, 0x55, 0x48, 0x81, 0xec, 0x58, 0x01, 0, 0, 0x48, 0x8d, 0xac, 0x24,
        ])
        let jump = try #require(
            InstructionDecoder(mode: .long64).decode(patch.replacement, at: Self.handler.rawValue))
        #expect(jump.mnemonic == .jmp && jump.operands[0].memory?.absoluteAddress == Self.handler.rawValue + 6)
        #expect(patch.replacement.count == 14 && patch.original.count == 14)
        #expect(Array(patch.replacement[6...]) == Self.target.rawValue.littleEndianBytes)
        #expect(patch.boundaries == [0, 4, 5, 12])
        #expect(patch.isInside(Self.handler.rawValue) && patch.isInside(Self.handler.rawValue + 13))
        #expect(!patch.isInside(Self.handler.rawValue + 14) && !patch.isInside(Self.handler.rawValue - 1))
    }

    @Test("A stub that ends early is replaced with the padding of its slot, and with nothing else's code")
    func stubs() throws {
        // push 0; push 20; jmp; and what fills the slot
        let stub: [UInt8] = [0x6a, 0, 0x6a, 20, 0xe9, 0, 1, 0, 0]
        let fill: [UInt8] = [0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0]
        let next: [UInt8] = [0x6a, 0, 0x6a, 21, 0xe9, 0, 1, 0, 0]
        #expect(throws: Never.self) { try patch(stub + fill.prefix(7) + next) }
        #expect(throws: Never.self) { try patch(stub + [UInt8](repeating: 0, count: 7) + next) }
        #expect(throws: InterruptGateError.self) { try patch(stub + next) }
        #expect(throws: InterruptGateError.self) { try patch(stub + fill + next, at: Self.handler + 8) }
        #expect(throws: InterruptGateError.self) { try patch([0xe9, 0, 1, 0, 0] + fill + fill) }
        #expect(throws: InterruptGateError.self) { try patch([0xff, 0x25, 0, 0, 0, 0] + fill + fill) }
        #expect(throws: InterruptGateError.self) { try patch([0x90, 0x06, 0x90]) }
        #expect(throws: InterruptGateError.self) { try GatePatch(handler: Self.handler, target: Self.target, code: []) }
    }

    @Test("The bundled kernels' stubs can be replaced", arguments: KernelFile.names)
    func bundled(_ name: String) throws {
        let file = try KernelFile(name)
        let text = try #require(file.image.section(named: ".text"))
        let start = file.image.address(rva: text.rva)
        let code = try file.memory.bytes(at: start, count: UInt64(text.virtualSize))
        // push 0; push 20; jmp
        let place = try #require(
            (0..<code.count / 16).map { $0 * 16 }.first {
                Array(code[$0..<$0 + 5]) == [0x6a, 0, 0x6a, 20, 0xe9]
            })
        let handler = start + UInt64(place)
        let patch = try GatePatch(handler: handler, target: Self.target, in: KernelMemory(file.tables.memory))
        #expect(patch.original == Array(code[place..<place + 14]))
    }
}
