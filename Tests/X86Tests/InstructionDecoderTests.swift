import TestSupport
import Testing
import X86

@Suite("Decoding") struct InstructionDecoderTests {
    let decoder = InstructionDecoder(mode: .long64)

    func decode(_ bytes: [UInt8], at address: UInt64 = 0x1000) throws -> Instruction {
        try #require(decoder.decode(bytes, at: address))
    }

    @Test("A load of a field names base, displacement and width")
    func field() throws {
        // mov rax, [rcx+2E8h]
        let instruction = try decode([0x48, 0x8b, 0x81, 0xe8, 0x02, 0, 0])
        #expect(instruction.mnemonic == .mov && instruction.length == 7 && instruction.flow == .sequential)
        #expect(instruction.destination == .rax)
        let memory = try #require(instruction.operands[1].memory)
        #expect(memory.base == .rcx && memory.index == nil && memory.displacement == 0x2e8 && memory.bits == 64)
        #expect(memory.isField(of: .rcx) && !memory.isField(of: .rdx))
        #expect(memory.absoluteAddress == nil)
    }

    @Test("A load from GS is no plain field, and has its offset as absolute address")
    func segment() throws {
        // mov rax, gs:[188h]
        let instruction = try decode([0x65, 0x48, 0x8b, 0x04, 0x25, 0x88, 0x01, 0, 0])
        let memory = try #require(instruction.operands[1].memory)
        #expect(memory.segment == .gs && memory.base == nil && memory.absoluteAddress == 0x188)
        // mov rax, gs:[rcx]
        let relative = try decode([0x65, 0x48, 0x8b, 0x01])
        #expect(relative.operands[1].memory?.isField(of: .rcx) == false)
    }

    @Test("A RIP-relative operand has the address it refers to, backwards too")
    func ripRelative() throws {
        // lea r10, [rip+100h]
        let lea = try decode([0x4c, 0x8d, 0x15, 0, 1, 0, 0], at: 0xffff_f800_0000_1000)
        #expect(lea.mnemonic == .lea && lea.destination == .r10)
        #expect(lea.operands[1].memory?.absoluteAddress == 0xffff_f800_0000_1107)
        let back = try decode([0x4c, 0x8d, 0x15, 0xf0, 0xff, 0xff, 0xff], at: 0x1000)
        #expect(back.operands[1].memory?.absoluteAddress == 0xff7)
    }

    @Test("Relative branches have their targets; others have none")
    func branches() throws {
        let call = try decode([0xe8, 0xfb, 0xff, 0xff, 0xff], at: 0x1000)
        #expect(call.isCall && call.relativeTarget == 0x1000 && call.fallsThrough)
        let jump = try decode([0xeb, 0x10], at: 0x1000)
        #expect(jump.isUnconditionalJump && jump.relativeTarget == 0x1012 && !jump.fallsThrough)
        let conditional = try decode([0x0f, 0x85, 0, 1, 0, 0], at: 0x1000)
        #expect(conditional.isConditionalJump && conditional.relativeTarget == 0x1106 && conditional.fallsThrough)
        let indirect = try decode([0x41, 0xff, 0xe3])  // jmp r11
        #expect(indirect.isUnconditionalJump && indirect.isIndirectBranch)
        #expect(indirect.operands[0].register == .r11)
        let through = try decode([0xff, 0x15, 0, 0, 0, 0])  // call [rip]
        #expect(through.isCall && through.isIndirectBranch && through.relativeTarget == nil)
        // A target wraps around the address space instead of trapping.
        #expect(try decode([0xe9, 0xff, 0xff, 0xff, 0x7f], at: .max - 16).relativeTarget == 0x7fff_fff3)
    }

    @Test("Control does not fall through returns, INT3 and UD2, but through INT n and ordinary code")
    func fallThrough() throws {
        #expect(try decode([0xc3]).isReturn)
        for end in [[0xc3], [0xcc], [0x0f, 0x0b], [0x48, 0xcf], [0x48, 0x0f, 0x07]] as [[UInt8]] {
            #expect(try !decode(end).fallsThrough)
        }
        for other in [[0x90], [0xcd, 0x2c], [0x0f, 0x05], [0xf4]] as [[UInt8]] {
            #expect(try decode(other).fallsThrough)
        }
    }

    @Test(
        "Partial registers are parts of their whole one",
        arguments: [
            ([0x8a, 0x80, 0x32, 0x02, 0, 0], Register.al),  // mov al, [rax+232h]
            ([0xb8, 0x0f, 0, 0, 0], Register.eax),  // mov eax, 15
            ([0x40, 0x8a, 0x20], Register.general(4, bits: 8)),  // mov spl, [rax]
            ([0x8a, 0x20], Register(kind: .highByte, number: 0, bits: 8)),  // mov ah, [rax]
            ([0x44, 0x8a, 0x38], Register.general(15, bits: 8)),  // mov r15b, [rax]
            ([0x66, 0x8b, 0x18], Register.general(3, bits: 16)),  // mov bx, [rax]
        ] as [([UInt8], Register)])
    func partial(bytes: [UInt8], register: Register) throws {
        #expect(try decode(bytes).destination == register)
        #expect(register.whole == .general(register.number))
    }

    @Test("Immediates are sign-extended where the instruction does so")
    func immediates() throws {
        #expect(try decode([0xb8, 0xff, 0xff, 0xff, 0xff]).operands[1].immediate == 0xffff_ffff)
        #expect(try decode([0x48, 0x83, 0xec, 0x10]).operands[1].immediate == 16)
        #expect(try decode([0x48, 0x83, 0xec, 0x80]).operands[1].immediate.map { Int64(bitPattern: $0) } == -128)
    }

    @Test("Bytes that are no instruction, or end before it does, decode to nothing")
    func nothing() {
        #expect(decoder.decode([], at: 0) == nil)
        #expect(decoder.decode([0xe8, 0, 0], at: 0) == nil)
        #expect(decoder.decode([0x06], at: 0) == nil)  // push es: not in 64-bit mode
        #expect(InstructionDecoder(mode: .protected32).decode([0x06], at: 0)?.mnemonic == .push)
        #expect(decoder.decode([UInt8](repeating: 0x66, count: 15), at: 0) == nil)
        #expect(decoder.decode([0x90, 0xff][...], at: 0)?.length == 1)
    }

    @Test("32-bit code has 32-bit targets and absolute addresses")
    func protected32() throws {
        let decoder = InstructionDecoder(mode: .protected32)
        let jump = try #require(decoder.decode([0xe9, 0xfb, 0xff, 0xff, 0xff], at: 0))
        #expect(jump.relativeTarget == 0)
        let back = try #require(decoder.decode([0xeb, 0x80], at: 0))
        #expect(back.relativeTarget == 0xffff_ff82)
        // mov eax, fs:[124h]
        let load = try #require(decoder.decode([0x64, 0xa1, 0x24, 0x01, 0, 0], at: 0))
        #expect(load.operands[1].memory?.segment == .fs && load.operands[1].memory?.absoluteAddress == 0x124)
    }

    @Test("Operands past an instruction's last are 'other', never a trap")
    func missingOperands() throws {
        let instruction = try decode([0xc3])
        #expect(instruction.operands.isEmpty && instruction.operands[3] == .other && instruction.operands[-1] == .other)
        #expect(instruction.destination == nil)
    }

    @Test("Random bytes never trap, and no instruction is longer than what was given")
    func fuzz() {
        var random = SeededGenerator(seed: 3)
        for mode in [DecodingMode.long64, .protected32] {
            let decoder = InstructionDecoder(mode: mode)
            for _ in 0..<20_000 {
                let bytes = (0..<Int(random.next() % 20)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
                if let instruction = decoder.decode(bytes, at: random.next()) {
                    #expect(instruction.length >= 1 && Int(instruction.length) <= min(bytes.count, 15))
                }
            }
        }
    }

    @Test("Mnemonics are spelled as the manual spells them")
    func mnemonics() throws {
        #expect(try decode([0x0f, 0x05]).mnemonic.description == "syscall")
        #expect(Mnemonic(rawValue: .max).description == "?")
    }
}
