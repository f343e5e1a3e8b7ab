import Testing
import X86

@Suite("Relocating each form") struct RelocationFormsTests {
    static let address: UInt64 = 0xffff_f800_1000_2000
    static let copy: UInt64 = 0xffff_f800_1234_5670
    static let fill = [UInt8](repeating: 0x90, count: 32)

    /// A prologue of these bytes, followed by NOPs and a RET.
    func relocate(
        _ bytes: [UInt8], at address: UInt64 = address, mode: DecodingMode = .long64, covering count: Int = 5
    ) throws -> PrologueRelocation {
        try PrologueRelocation(of: bytes + Self.fill + [0xc3], at: address, mode: mode, covering: count)
    }

    /// The copy without its jump back.
    func copied(_ relocation: PrologueRelocation, at copy: UInt64 = copy) throws -> [UInt8] {
        #expect(try RelocationCheck.differences(relocation, at: copy) == [])
        return Array(try relocation.bytes(at: copy).dropLast(relocation.jumpsBack ? 5 : 0))
    }

    @Test(
        "What does not depend on its address is copied byte for byte, prefixes and REX included",
        arguments: [
            [0x48, 0x89, 0x5c, 0x24, 0x08],  // mov [rsp+8], rbx
            [0x40, 0x53, 0x48, 0x83, 0xec, 0x30],  // push rbx with an empty REX; sub rsp, 30h
            [0x48, 0x8b, 0xc4, 0x48, 0x89, 0x58, 0x08],  // mov rax, rsp; mov [rax+8], rbx
            [0xf3, 0x0f, 0x1e, 0xfa, 0x55],  // endbr64; push rbp
            [0x66, 0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],  // a NOP with two prefixes
            [0x65, 0x48, 0x8b, 0x04, 0x25, 0x88, 0x01, 0, 0],  // mov rax, gs:[188h]
            [0xf0, 0x48, 0x0f, 0xba, 0x29, 0x07],  // lock bts qword [rcx], 7
            [0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8],  // mov rax, imm64
            [0xc5, 0xf8, 0x29, 0x74, 0x24, 0x20],  // vmovaps [rsp+20h], xmm6
            [0xff, 0xd0, 0x48, 0x83, 0xec, 0x20],  // call rax
        ] as [[UInt8]])
    func independent(_ bytes: [UInt8]) throws {
        let relocation = try relocate(bytes)
        #expect(try copied(relocation) == bytes)
        #expect(relocation.replacedLength == bytes.count && relocation.jumpsBack)
        #expect(relocation.calls == (bytes[0] == 0xff))
    }

    @Test(
        "An operand relative to RIP keeps its address; only the four bytes of its displacement change",
        arguments: [
            ([0x48, 0x8b, 0x05], []),  // mov rax, [rip]
            ([0x4c, 0x8d, 0x1d], []),  // lea r11, [rip]
            ([0x48, 0x89, 0x0d], []),  // mov [rip], rcx
            ([0x80, 0x3d], [0x01]),  // cmp byte [rip], 1
            ([0x44, 0x38, 0x05], []),  // cmp [rip], r8b
            ([0x81, 0x3d], [1, 2, 3, 4]),  // cmp dword [rip], imm32
            ([0x48, 0xc7, 0x05], [1, 2, 3, 4]),  // mov qword [rip], imm32
            ([0x66, 0x81, 0x05], [1, 2]),  // add word [rip], imm16
            ([0x65, 0x48, 0x8b, 0x05], []),  // mov rax, gs:[rip]
            ([0xf0, 0x0f, 0xc1, 0x05], []),  // lock xadd [rip], eax
            ([0xf3, 0x0f, 0x6f, 0x05], []),  // movdqu xmm0, [rip]
            ([0xc5, 0xfe, 0x6f, 0x0d], []),  // vmovdqu ymm1, [rip]
            ([0x62, 0xf1, 0x7c, 0x48, 0x10, 0x05], []),  // vmovups zmm0, [rip]
            ([0xff, 0x15], []),  // call [rip]
            ([0x66, 0x0f, 0x3a, 0x0f, 0x05], [8]),  // palignr xmm0, [rip], 8
        ] as [([UInt8], [UInt8])])
    func displaced(_ opcode: [UInt8], _ immediate: [UInt8]) throws {
        for distance in [0x4000, -0x4000, 0x1000_0000] as [Int32] {
            let bytes = opcode + littleEndian(distance) + immediate
            let moved = try copied(try relocate(bytes))
            let shift = Int32(truncatingIfNeeded: Self.copy &- Self.address)
            #expect(moved == opcode + littleEndian(distance - shift) + immediate)
        }
    }

    @Test("Short and near jumps on a condition become near ones to the same target, with their prefixes")
    func conditional() throws {
        for condition in 0..<16 as Range<UInt8> {
            let short = try copied(try relocate([0x70 + condition, 0x60, 0x48, 0x83, 0xec, 0x28]))
            #expect(short == [0x0f, 0x80 + condition] + distance(to: 0x62, from: 6) + [0x48, 0x83, 0xec, 0x28])
            let near = try copied(try relocate([0x0f, 0x80 + condition, 0, 1, 0, 0]))
            #expect(near == [0x0f, 0x80 + condition] + distance(to: 0x106, from: 6))
        }
        let hinted = try copied(try relocate([0x2e, 0x74, 0x80, 0x90, 0x90]))
        #expect(hinted == [0x2e, 0x0f, 0x84] + distance(to: 3 - 0x80, from: 7) + [0x90, 0x90])
    }

    @Test("A relative call is made from the copy, and said to be one")
    func call() throws {
        let relocation = try relocate([0xe8, 0, 1, 0, 0])
        #expect(relocation.calls)
        #expect(try copied(relocation) == [0xe8] + distance(to: 0x105, from: 5))
    }

    @Test("A jump that ends the replaced bytes is moved, and nothing follows its copy")
    func endingJump() throws {
        let short = try relocate([0x48, 0x83, 0xec, 0x28, 0xeb, 0x70])
        #expect(!short.jumpsBack && short.replacedLength == 6)
        #expect(try copied(short) == [0x48, 0x83, 0xec, 0x28, 0xe9] + distance(to: 0x76, from: 9))
        let near = try relocate([0x48, 0x8b, 0xc1, 0xe9, 0, 1, 0, 0])
        #expect(try copied(near) == [0x48, 0x8b, 0xc1, 0xe9] + distance(to: 0x108, from: 8))
        // lea rax, [rcx+8]; ret
        let ret = try relocate([0x48, 0x8d, 0x41, 0x08, 0xc3])
        #expect(try copied(ret) == [0x48, 0x8d, 0x41, 0x08, 0xc3] && !ret.jumpsBack)
    }

    @Test("LOOP and JRCXZ become a branch over jumps, and a RIP between those stands for where it would go")
    func counted() throws {
        for opcode in 0xe0...0xe3 as ClosedRange<UInt8> {
            for prefix in [[], [0x67]] as [[UInt8]] {
                let relocation = try relocate(prefix + [opcode, 0x40, 0x48, 0x83, 0xec, 0x28])
                let length = prefix.count + 9
                let target = 0x42 + prefix.count
                let expected = prefix + [opcode, 2, 0xeb, 5, 0xe9] + distance(to: target, from: length)
                #expect(try copied(relocation) == expected + [0x48, 0x83, 0xec, 0x28])
                let next = Self.address + UInt64(prefix.count + 2)
                #expect(relocation.original(ofCopyOffset: 0) == Self.address)
                #expect(relocation.original(ofCopyOffset: prefix.count + 2) == next)
                #expect(relocation.original(ofCopyOffset: prefix.count + 4) == Self.address + UInt64(target))
                #expect(relocation.original(ofCopyOffset: length) == next)
                #expect(relocation.original(ofCopyOffset: 1) == nil)
            }
        }
    }

    @Test("A branch among the moved instructions leads to the copy of its target")
    func inward() throws {
        // L: dec ecx; jnz L; jz M; nop; M: sub rsp, 28h
        let bytes: [UInt8] = [0xff, 0xc9, 0x75, 0xfc, 0x74, 0x01, 0x90, 0x48, 0x83, 0xec, 0x28]
        let relocation = try relocate(bytes, covering: 8)
        let expected: [UInt8] =
            [0xff, 0xc9, 0x0f, 0x85] + littleEndian(-8) + [0x0f, 0x84] + littleEndian(1) + [0x90]
            + [0x48, 0x83, 0xec, 0x28]
        #expect(try copied(relocation) == expected)
        // Behind the last moved instruction lies the original again.
        let behind = try relocate([0x74, 0x03, 0x48, 0x8b, 0xc1])
        #expect(try copied(behind) == [0x0f, 0x84] + distance(to: 5, from: 6) + [0x48, 0x8b, 0xc1])
    }

    @Test("Each instruction's copy can be found, and each copy's instruction, the jump back included")
    func mapping() throws {
        let relocation = try relocate([0x55, 0x74, 0x20, 0x48, 0x8b, 0xc1])
        #expect(relocation.pieces.map(\.copyOffset) == [0, 1, 7] && relocation.copyLength == 15)
        for (original, offset) in [(0, 0), (1, 1), (3, 7)] as [(UInt64, Int)] {
            #expect(relocation.copyOffset(of: Self.address + original) == offset)
            #expect(relocation.original(ofCopyOffset: offset) == Self.address + original)
        }
        #expect(relocation.original(ofCopyOffset: 10) == relocation.continuation)
        #expect(relocation.continuation == Self.address + 6)
        for other in [2, 4, 5, 6] as [UInt64] { #expect(relocation.copyOffset(of: Self.address + other) == nil) }
        for other in [2, 8, 11, 15, -1] { #expect(relocation.original(ofCopyOffset: other) == nil) }
    }

    @Test("32-bit code: the same forms, without RIP, and distances that wrap around 4 GiB")
    func protected32() throws {
        let copy: UInt64 = 0xf000_0000
        let address: UInt64 = 0x1000_0000
        // mov edi, edi; push ebp; mov ebp, esp
        let hotPatchable: [UInt8] = [0x8b, 0xff, 0x55, 0x8b, 0xec]
        let plain = try relocate(hotPatchable, at: address, mode: .protected32)
        #expect(try copied(plain, at: copy) == hotPatchable)
        #expect(try plain.bytes(at: copy).suffix(5) == [0xe9] + littleEndian(0x2000_0005 - 10))
        // mov eax, [12345678h]: absolute, where 64-bit code has an operand relative to RIP.
        let absolute: [UInt8] = [0x8b, 0x0d, 0x78, 0x56, 0x34, 0x12]
        #expect(try copied(try relocate(absolute, at: address, mode: .protected32), at: copy) == absolute)
        // INC EAX where 64-bit code has a REX prefix; jz; call
        let forms: [UInt8] = [0x40, 0x74, 0x10, 0xe8, 0, 1, 0, 0]
        let moved = try relocate(forms, at: address, mode: .protected32)
        #expect(
            try copied(moved, at: copy) == [0x40, 0x0f, 0x84] + littleEndian(0x2000_0013 - 7) + [0xe8]
                + littleEndian(0x2000_0108 - 12))
        let loop = try relocate([0xe2, 0x10, 0x8b, 0xec, 0x90], at: address, mode: .protected32)
        #expect(
            try copied(loop, at: copy) == [0xe2, 2, 0xeb, 5, 0xe9] + littleEndian(0x2000_0012 - 9) + [0x8b, 0xec, 0x90])
    }

    @Test("A copy that is out of reach is refused at the first byte too far, and not before")
    func reach() throws {
        let relocation = try relocate([0x48, 0x8b, 0x05, 0, 0, 0, 0])
        let lowest = Self.address - 0x7fff_ffff
        #expect(try copied(relocation, at: lowest).suffix(4) == [0xff, 0xff, 0xff, 0x7f])
        #expect(
            throws: PrologueRefusal.outOfReach(
                .mov, at: Self.address, target: Self.address + 7, copy: lowest - 1)
        ) { try relocation.bytes(at: lowest - 1) }
        // Upwards the jump back ends it, which lies behind the copied instruction.
        let highest = Self.address + 0x7fff_fffb
        #expect(try copied(relocation, at: highest).suffix(4) == [0x05, 0, 0, 0x80])
        #expect(
            throws: PrologueRefusal.outOfReach(
                .jmp, at: relocation.continuation, target: relocation.continuation, copy: highest + 8)
        ) { try relocation.bytes(at: highest + 1) }
    }

    private func littleEndian(_ value: Int32) -> [UInt8] {
        (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }

    private func littleEndian(_ value: Int) -> [UInt8] { littleEndian(Int32(truncatingIfNeeded: value)) }

    /// From `end` bytes into the copy to `offset` of the original.
    private func distance(to offset: Int, from end: Int) -> [UInt8] {
        littleEndian(Int(Int64(bitPattern: Self.address &- Self.copy)) + offset - end)
    }
}
