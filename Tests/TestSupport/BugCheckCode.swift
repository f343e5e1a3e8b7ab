/// Shapes of a kernel's bug check functions, as Windows' public symbols and disassemblies show them.
public enum BugCheckCode {
    /// Code, three parameters into the home space; pushfq; sub rsp, 30h; cli.
    public static let saveArguments: [UInt8] = [
        0x48, 0x89, 0x4c, 0x24, 0x08, 0x48, 0x89, 0x54, 0x24, 0x10, 0x4c, 0x89, 0x44, 0x24, 0x18, 0x4c, 0x89, 0x4c,
        0x24, 0x20, 0x9c, 0x48, 0x83, 0xec, 0x30, 0xfa,
    ]
    /// The same from the home space: mov ecx, [rsp+40h] and so on; the fifth one to [rsp+20h].
    public static let loadArguments: [UInt8] = [
        0x8b, 0x4c, 0x24, 0x40, 0x48, 0x8b, 0x54, 0x24, 0x48, 0x4c, 0x8b, 0x44, 0x24, 0x50, 0x4c, 0x8b, 0x4c, 0x24,
        0x58, 0x48, 0x8b, 0x44, 0x24, 0x60, 0x48, 0x89, 0x44, 0x24, 0x20,
    ]
    /// mov rcx, gs:[20h]: what the context is saved by.
    public static let loadProcessor: [UInt8] = [0x65, 0x48, 0x8b, 0x0c, 0x25, 0x20, 0, 0, 0]
    /// sub rsp, 38h; xor edx, edx; xor r8d, r8d; xor r9d, r9d; mov [rsp+20h], rdx.
    public static let plainArguments: [UInt8] = [
        0x48, 0x83, 0xec, 0x38, 0x33, 0xd2, 0x45, 0x33, 0xc0, 0x45, 0x33, 0xc9, 0x48, 0x89, 0x54, 0x24, 0x20,
    ]

    /// Windows 7 x86: KeBugCheckEx saves the context, and pushes its five arguments and a null frame for KeBugCheck2;
    /// KeBugCheck pushes its own and five zeroes.
    public static let windows32: @Sendable (inout CodeBuilder) -> Void = { code in
        emitFunctions(["RtlCaptureContext", "KeBugCheck2"], &code)
        code.function("KeBugCheckEx")
        code.emit(0x8b, 0xff, 0x55, 0x8b, 0xec, 0x83, 0xe4, 0xf8)  // mov edi, edi; push ebp; mov ebp, esp; and esp, -8
        code.emit(0x64, 0xa1, 0x20, 0, 0, 0, 0x50)  // mov eax, fs:[20h]; push eax
        code.call("RtlCaptureContext")
        code.emit(0x6a, 0x00)
        for offset in [0x18, 0x14, 0x10, 0x0c, 0x08] as [UInt8] { code.emit(0xff, 0x75, offset) }  // push [ebp+..]
        code.call("KeBugCheck2")
        code.emit(0xcc)
        code.function("KeBugCheck")
        code.emit(0x8b, 0xff, 0x55, 0x8b, 0xec)
        for _ in 0..<5 { code.emit(0x6a, 0x00) }
        code.emit(0xff, 0x75, 0x08)
        code.call("KeBugCheck2")
        code.emit(0xcc)
    }

    public static func emitFunctions(_ names: [String], _ code: inout CodeBuilder) {
        for name in names {
            code.function(name)
            code.emit(0x33, 0xc0, 0xc3)
        }
    }

    /// KeBugCheckEx saves the context, branches, and calls KeBugCheck2; KeBugCheck calls it at once.
    public static let windows: @Sendable (inout CodeBuilder) -> Void = { code in
        emitFunctions(["RtlCaptureContext", "KiSaveProcessorControlState", "KeBugCheck2"], &code)
        code.function("KeBugCheckEx")
        code.emit(saveArguments + loadProcessor)
        code.call("RtlCaptureContext")
        code.emit(loadProcessor)
        code.call("KiSaveProcessorControlState")
        code.emit(0x48, 0x3b, 0x44, 0x24, 0x38, 0x75, 0x02)  // cmp rax, [rsp+38h]; jne +2
        code.emit(0x33, 0xc0)  // xor eax, eax
        code.emit(loadArguments)
        code.call("KeBugCheck2")
        code.emit(0xcc)
        code.function("KeBugCheck")
        code.emit(plainArguments)
        code.call("KeBugCheck2")
        code.emit(0xcc)
    }
}
