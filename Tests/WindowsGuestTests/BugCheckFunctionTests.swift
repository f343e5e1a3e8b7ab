import GuestMemory
import TestSupport
import Testing
import WindowsGuest

@Suite("Where a crashing kernel comes by") struct BugCheckFunctionTests {
    private static func guest(_ code: @escaping @Sendable (inout CodeBuilder) -> Void) -> SyntheticKernel {
        SyntheticKernel { $0.bugChecks = code }
    }

    private static func find(
        _ guest: SyntheticKernel, _ patterns: [FunctionPatterns] = []
    ) throws -> BugCheckFunction {
        try BugCheckFunction(of: try guest.locate(), patterns: patterns)
    }

    /// KeBugCheckEx that makes some calls with the code in ECX, and KeBugCheck that makes others.
    private static func calling(
        _ outer: [String], _ plain: [String], before: [UInt8] = [], plainBefore: [UInt8] = BugCheckCode.plainArguments
    ) -> SyntheticKernel {
        guest { code in
            BugCheckCode.emitFunctions(["KeBugCheck2", "KiNote", "KiOther"], &code)
            code.function("KeBugCheckEx")
            code.emit(BugCheckCode.saveArguments)
            for name in outer {
                code.emit(BugCheckCode.loadArguments + before)
                code.call(name)
            }
            code.emit(0xcc)
            code.function("KeBugCheck")
            code.emit(plainBefore)
            for name in plain { code.call(name) }
            code.emit(0xcc)
        }
    }

    private static func pattern(_ bytes: [UInt8]) throws -> FunctionPatterns {
        let row = bytes.map { "0x" + String($0, radix: 16) }.joined(separator: ", ")
        return try FunctionPatterns(
            yaml: """
                !intro_update_win_function
                name: KeBugCheck2
                guest64: True
                patterns:
                    -
                        !intro_update_win_pattern
                        section_hint: NULL
                        min_ver: 19041
                        max_ver: 19045
                        pattern: !code_pattern
                            code:
                                - [\(row)]
                """, source: "test")
    }

    @Test("The callee that KeBugCheckEx and KeBugCheck share is KeBugCheck2")
    func windows() throws {
        let guest = Self.guest(BugCheckCode.windows)
        let found = try Self.find(guest)
        #expect(found.name == "KeBugCheck2" && found.address == guest.guestAddress("KeBugCheck2"))
        #expect(found.foundBy == [.commonCallee] && found.notes == [])
    }

    @Test("Calls with something else in ECX do not count, nor what only one of them calls with the code")
    func decoys() throws {
        let one = Self.calling(["KiNote", "KeBugCheck2"], ["KeBugCheck2"])
        #expect(try Self.find(one).address == one.guestAddress("KeBugCheck2"))
        // Both call KiNote, but KeBugCheck with its second argument: mov rcx, rdx.
        let other = Self.guest { code in
            BugCheckCode.emitFunctions(["KeBugCheck2", "KiNote"], &code)
            code.function("KeBugCheckEx")
            code.emit(BugCheckCode.saveArguments + BugCheckCode.loadArguments)
            code.call("KiNote")
            code.emit(BugCheckCode.loadArguments)
            code.call("KeBugCheck2")
            code.emit(0xcc)
            code.function("KeBugCheck")
            code.emit(0x8b, 0xd9, 0x48, 0x83, 0xec, 0x30, 0x48, 0x8b, 0xca)  // mov ebx, ecx; sub rsp, 30h; mov rcx, rdx
            code.call("KiNote")
            code.emit(0x8b, 0xcb)  // mov ecx, ebx
            code.call("KeBugCheck2")
            code.emit(0xcc)
        }
        #expect(try Self.find(other).address == other.guestAddress("KeBugCheck2"))
    }

    @Test("An exported callee is not it")
    func exportedDecoy() throws {
        let guest = Self.calling(["ZwClose", "KeBugCheck2"], ["ZwClose"])
        let found = try Self.find(guest)
        #expect(found.name == "KeBugCheckEx" && found.address == guest.guestAddress("KeBugCheckEx"))
        #expect(found.foundBy == [] && found.notes.count == 1 && found.notes[0].contains("was not found"))
    }

    @Test("Two shared callees are ambiguous: KeBugCheckEx is used, and both are named")
    func ambiguous() throws {
        // After the first call nothing is left in ECX: the code waits in EBX.
        let guest = Self.guest { code in
            BugCheckCode.emitFunctions(["KeBugCheck2", "KiNote"], &code)
            for name in ["KeBugCheckEx", "KeBugCheck"] {
                code.function(name)
                code.emit(0x8b, 0xd9)
                code.call("KiNote")
                code.emit(0x8b, 0xcb)
                code.call("KeBugCheck2")
                code.emit(0xcc)
            }
        }
        let found = try Self.find(guest)
        #expect(found.name == "KeBugCheckEx" && found.foundBy == [])
        for name in ["KeBugCheck2", "KiNote"] {
            #expect(found.notes.first?.contains(guest.guestAddress(name).description) == true)
        }
    }

    @Test("What changes ECX on one of two paths, on the stack or in a call takes the call out")
    func changes() throws {
        let changes: [(String, [UInt8])] = [
            ("inc ecx", [0xff, 0xc1]),
            ("mov cl, 1", [0xb1, 0x01]),
            ("jne over mov ecx, eax", [0x75, 0x02, 0x8b, 0xc8]),
            ("cpuid", [0x0f, 0xa2]),
            ("mov dword [rsp+42h], eax; mov ecx, [rsp+40h]", [0x89, 0x44, 0x24, 0x42, 0x8b, 0x4c, 0x24, 0x40]),
            ("and rsp, -16; mov ecx, [rsp+40h]", [0x48, 0x83, 0xe4, 0xf0, 0x8b, 0x4c, 0x24, 0x40]),
            ("xchg ecx, eax", [0x91]),
        ]
        for (words, bytes) in changes {
            let guest = Self.calling(["KeBugCheck2"], ["KeBugCheck2"], before: bytes)
            #expect(try Self.find(guest).name == "KeBugCheckEx", "\(words)")
        }
        // What comes from elsewhere, with the same value or not, is not the argument.
        let fixed = Self.calling(["KeBugCheck2"], ["KeBugCheck2"], plainBefore: [0xb9, 0xe2, 0, 0, 0])
        #expect(try Self.find(fixed).name == "KeBugCheckEx")
    }

    @Test("Moved about, the code is still known: registers that survive calls, pushes, pointers into the frame")
    func moves() throws {
        let ways: [(String, [UInt8])] = [
            ("push rcx; pop rbx; mov ecx, ebx", [0x51, 0x5b, 0x8b, 0xcb]),
            ("lea r11, [rsp+38h]; mov ecx, [r11+8]", [0x4c, 0x8d, 0x5c, 0x24, 0x38, 0x41, 0x8b, 0x4b, 0x08]),
            ("mov rax, rsp; mov rcx, [rax+40h]", [0x48, 0x8b, 0xc4, 0x48, 0x8b, 0x48, 0x40]),
            ("movsxd rcx, dword [rsp+40h]", [0x48, 0x63, 0x4c, 0x24, 0x40]),
            ("jne to the next instruction", [0x75, 0x00]),
        ]
        for (words, bytes) in ways {
            let guest = Self.calling(["KeBugCheck2"], ["KeBugCheck2"], before: bytes)
            #expect(try Self.find(guest).name == "KeBugCheck2", "\(words)")
        }
    }

    @Test("A KeBugCheck that only goes on to KeBugCheckEx confirms nothing", arguments: [true, false])
    func wrapper(jumps: Bool) throws {
        let guest = Self.guest { code in
            BugCheckCode.emitFunctions(["KeBugCheck2"], &code)
            code.function("KeBugCheckEx")
            code.emit(BugCheckCode.saveArguments + BugCheckCode.loadArguments)
            code.call("KeBugCheck2")
            code.emit(0xcc)
            code.function("KeBugCheck")
            code.emit(BugCheckCode.plainArguments)
            if jumps { code.jump("KeBugCheckEx") } else { code.call("KeBugCheckEx") }
            code.emit(0xcc)
        }
        #expect(try Self.find(guest).name == "KeBugCheckEx")
    }

    @Test("Without KeBugCheck, with code that is no code or absent, KeBugCheckEx is used, and a note says why")
    func missing() throws {
        let guest = SyntheticKernel {
            $0.bugChecks = BugCheckCode.windows
            $0.withoutExports = ["KeBugCheck"]
        }
        let found = try Self.find(guest)
        #expect(found.name == "KeBugCheckEx" && found.notes.first?.contains("exports no KeBugCheck") == true)
        let broken = Self.guest(BugCheckCode.windows)
        broken.write([UInt8](repeating: 0x06, count: 16), at: broken.address("KeBugCheck"))
        #expect(try Self.find(broken).name == "KeBugCheckEx")
        let without = SyntheticKernel { $0.withoutExports = ["KeBugCheckEx"] }
        #expect(throws: DiscoveryError.self) { try Self.find(without) }
    }

    @Test("A loop in the code ends")
    func loop() throws {
        let guest = Self.guest { code in
            BugCheckCode.emitFunctions(["KeBugCheck2"], &code)
            for name in ["KeBugCheckEx", "KeBugCheck"] {
                code.function(name)
                code.emit(0x50, 0xeb, 0xfd)  // push rax; jmp to it
            }
        }
        #expect(try Self.find(guest).name == "KeBugCheckEx")
    }

    @Test("A pattern is a second way; one that leads elsewhere or to several places means KeBugCheckEx")
    func patterns() throws {
        let guest = Self.guest { code in
            BugCheckCode.windows(&code)
            code.function("KiUnlike")
            code.emit(0x48, 0x8b, 0xc1, 0x48, 0x8b, 0xd1, 0xc3)
        }
        // Bytes of its own, to be found by.
        guest.write([0x48, 0x8b, 0xc2, 0x48, 0x8b, 0xd2, 0xc3] as [UInt8], at: guest.address("KeBugCheck2"))
        let right = try Self.find(guest, [try Self.pattern([0x48, 0x8b, 0xc2, 0x48, 0x8b, 0xd2, 0xc3])])
        #expect(right.name == "KeBugCheck2" && right.foundBy == [.commonCallee, .pattern] && right.notes == [])
        let wrong = try Self.find(guest, [try Self.pattern([0x48, 0x8b, 0xc1, 0x48, 0x8b, 0xd1, 0xc3])])
        #expect(wrong.name == "KeBugCheckEx" && wrong.foundBy == [])
        #expect(wrong.notes.last?.contains("disagree") == true)
        let several = try Self.find(guest, [try Self.pattern([0x33, 0xc0, 0xc3])])
        #expect(several.name == "KeBugCheckEx" && several.notes.last?.contains("ambiguous") == true)
        let none = try Self.find(guest, [try Self.pattern([UInt8](repeating: 0x0f, count: 16))])
        #expect(none.name == "KeBugCheck2" && none.foundBy == [.commonCallee] && none.notes.count == 1)

        // The pattern is the only way where KeBugCheck is not exported.
        let alone = SyntheticKernel {
            $0.bugChecks = BugCheckCode.windows
            $0.withoutExports = ["KeBugCheck"]
        }
        alone.write([0x48, 0x8b, 0xc2, 0x48, 0x8b, 0xd2, 0xc3] as [UInt8], at: alone.address("KeBugCheck2"))
        let found = try Self.find(alone, [try Self.pattern([0x48, 0x8b, 0xc2, 0x48, 0x8b, 0xd2, 0xc3])])
        #expect(found.foundBy == [.pattern] && found.address == alone.guestAddress("KeBugCheck2"))
    }
}
