import Testing
import X86

@Suite("Prologues that are not relocated") struct RelocationRefusalTests {
    static let address: UInt64 = 0xffff_f800_1000_2000

    func refusal(
        _ bytes: [UInt8], mode: DecodingMode = .long64, covering count: Int = 5, tail: [UInt8]? = nil
    ) -> PrologueRefusal? {
        do throws(PrologueRefusal) {
            let address = mode == .long64 ? Self.address : 0x8200_0000
            let tail = tail ?? [UInt8](repeating: 0x90, count: 32) + [0xc3]
            _ = try PrologueRelocation(of: bytes + tail, at: address, mode: mode, covering: count)
            return nil
        } catch {
            #expect(error.description.contains("0x"), "each refusal names an address")
            return error
        }
    }

    @Test("Another hook's jump at the entry has a refusal of its own")
    func hooked() {
        let hooked = PrologueRefusal.alreadyHooked(at: Self.address)
        #expect(refusal([0xe9, 0, 1, 0, 0]) == hooked)
        #expect(refusal([0xff, 0x25, 0, 0, 0, 0]) == hooked)
        #expect(refusal([0x48, 0xff, 0x25, 0, 0, 0, 0]) == hooked)
        #expect(refusal([0xf3, 0x0f, 0x1e, 0xfa, 0xe9, 0, 1, 0, 0]) == hooked)
        // A patched hot-patch prologue: back to the five bytes before the function.
        #expect(refusal([0xeb, 0xf9]) == hooked)
        #expect(refusal([0xff, 0x25, 0, 0, 0, 0x80], mode: .protected32) == .alreadyHooked(at: 0x8200_0000))
        // A jump later on is none.
        #expect(refusal([0x48, 0x8b, 0xc1, 0xe9, 0, 1, 0, 0]) == nil)
    }

    @Test("A function that ends before there are enough bytes")
    func ends() {
        #expect(refusal([0xc3]) == .endsEarly(.ret, at: Self.address, needed: 5))
        #expect(refusal([0x33, 0xc0, 0xc3]) == .endsEarly(.ret, at: Self.address + 2, needed: 5))
        #expect(refusal([0x33, 0xc0, 0xc2, 8, 0]) == nil)
        #expect(refusal([0xeb, 0x10]) == .endsEarly(.jmp, at: Self.address, needed: 5))
        #expect(refusal([0xff, 0xe0]) == .endsEarly(.jmp, at: Self.address, needed: 5))
        #expect(refusal([0x55, 0xe9, 0, 1, 0, 0], covering: 7) == .endsEarly(.jmp, at: Self.address + 1, needed: 7))
        #expect(refusal([0x55, 0xcc]) == .breakpoint(at: Self.address + 1))
        #expect(refusal([0xcc]) == .breakpoint(at: Self.address))
    }

    @Test("Bytes that are no instruction, or that end too soon")
    func bytes() {
        #expect(refusal([0x55, 0x06]) == .undecodable(at: Self.address + 1))
        #expect(refusal([], tail: []) == .truncated(at: Self.address))
        #expect(refusal([0x55, 0x48, 0x83], tail: []) == .truncated(at: Self.address + 1))
        #expect(refusal([0x55, 0x90, 0x90, 0x90], tail: []) == .truncated(at: Self.address + 4))
        #expect(throws: PrologueRefusal.truncated(at: .max - 3)) {
            try PrologueRelocation(of: [UInt8](repeating: 0x90, count: 16), at: .max - 3, mode: .long64)
        }
    }

    @Test("What makes its own address visible")
    func tells() {
        // CALL to the next instruction, as 32-bit code learns where it is.
        #expect(
            refusal([0xe8, 0, 0, 0, 0, 0x58], mode: .protected32) == .tellsItsAddress(.call, at: 0x8200_0000))
        #expect(refusal([0x90, 0xe8, 1, 0, 0, 0], covering: 8) == .tellsItsAddress(.call, at: Self.address + 1))
        #expect(refusal([0x90, 0x90, 0x90, 0x0f, 0x05]) == .tellsItsAddress(.syscall, at: Self.address + 3))
        #expect(refusal([0x90, 0x90, 0x90, 0xcd, 0x2c]) == .tellsItsAddress(.int, at: Self.address + 3))
        #expect(refusal([0x90, 0x90, 0x90, 0x0f, 0x0b]) == .tellsItsAddress(.ud2, at: Self.address + 3))
    }

    @Test("Branches in forms that are not moved")
    func branches() {
        for bytes in [
            [0xc7, 0xf8, 0, 1, 0, 0],  // xbegin
            [0xff, 0x2d, 0, 1, 0, 0],  // jmp far [rip]
            [0x66, 0x0f, 0x84, 0, 1, 0, 0],  // jz with an operand-size prefix
            [0x90, 0x66, 0x74, 0x70, 0x90],
            [UInt8](repeating: 0x2e, count: 12) + [0x74, 0x70],  // longer than 15 bytes, as a near jump
        ] as [[UInt8]] {
            guard case .unsupportedBranch = refusal(bytes) else {
                Issue.record("\(bytes): \(String(describing: refusal(bytes)))")
                continue
            }
        }
        // lcall 10h:12345678h
        let far: [UInt8] = [0x9a, 0x78, 0x56, 0x34, 0x12, 0x10, 0]
        #expect(refusal(far, mode: .protected32) == .unsupportedBranch(.call, at: 0x8200_0000))
        #expect(
            refusal([0x90, 0x66, 0xe9, 0x10, 0], mode: .protected32)
                == .unsupportedBranch(.jmp, at: 0x8200_0001))
    }

    @Test("Operands relative to EIP, and operands among the replaced bytes")
    func operands() {
        #expect(refusal([0x67, 0x8b, 0x05, 0, 1, 0, 0]) == .truncatedOperand(.mov, at: Self.address))
        // mov rax, [rip-4]: bytes of its own.
        let own: [UInt8] = [0x48, 0x8b, 0x05, 0xfc, 0xff, 0xff, 0xff]
        #expect(refusal(own) == .usesReplacedBytes(.mov, at: Self.address, operand: Self.address + 3))
        // mov rax, [rip-0Eh]: its last byte is the function's first.
        let before: [UInt8] = [0x48, 0x8b, 0x05, 0xf2, 0xff, 0xff, 0xff]
        #expect(refusal(before) == .usesReplacedBytes(.mov, at: Self.address, operand: Self.address - 7))
        // One byte less, and the byte behind the replaced ones, are others'.
        #expect(refusal([0x48, 0x8b, 0x05, 0xf1, 0xff, 0xff, 0xff]) == nil)
        #expect(refusal([0x48, 0x8b, 0x05, 0, 0, 0, 0]) == nil)
        // The function's own address is the function's.
        #expect(refusal([0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff]) == nil)
        #expect(
            refusal([0x48, 0x8d, 0x05, 0xfa, 0xff, 0xff, 0xff])
                == .usesReplacedBytes(.lea, at: Self.address, operand: Self.address + 1))
    }

    @Test("A branch from the function's body to inside the replaced bytes is named; one to the entry is none")
    func inwardBranches() {
        let prologue: [UInt8] = [0x55, 0x48, 0x83, 0xec, 0x28]
        func branch(_ bytes: [UInt8]) -> PrologueRefusal? { refusal(prologue, tail: bytes + [0xc3, 0x90, 0x90]) }
        // jnz to the second instruction, and to the middle of it.
        #expect(branch([0x75, 0xfa]) == .branchIntoReplacedBytes(from: Self.address + 5, to: Self.address + 1))
        #expect(branch([0x75, 0xfc]) == .branchIntoReplacedBytes(from: Self.address + 5, to: Self.address + 3))
        #expect(
            branch([0xe8, 0xf7, 0xff, 0xff, 0xff])
                == .branchIntoReplacedBytes(from: Self.address + 5, to: Self.address + 1))
        #expect(branch([0xe2, 0xfa]) == .branchIntoReplacedBytes(from: Self.address + 5, to: Self.address + 1))
        // To the entry, and to the first instruction behind.
        #expect(branch([0x75, 0xf9]) == nil)
        #expect(branch([0x75, 0xfe]) == nil)
        // Behind a jump over what is no code.
        #expect(
            branch([0xeb, 0x02, 0x06, 0x06, 0x75, 0xf6])
                == .branchIntoReplacedBytes(from: Self.address + 9, to: Self.address + 1))
        // Bytes that control does not reach are no branches.
        #expect(branch([0xc3, 0x75, 0xf9]) == nil)
        #expect(branch([0xeb, 0x02, 0x75, 0xf8, 0xc3]) == nil)
    }

    @Test("A branch of the prologue itself into the middle of an instruction of it")
    func middle() {
        #expect(
            refusal([0x74, 0x01, 0x48, 0x83, 0xec, 0x28])
                == .branchIntoReplacedBytes(from: Self.address, to: Self.address + 3))
    }
}
