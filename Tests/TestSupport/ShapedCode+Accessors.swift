import WindowsGuest

/// Accessors as different compilers write them.
extension ShapedCode {
    mutating func accessors() {
        let offsets = shape.offsets
        region("ExGetPreviousMode", offsets.previousMode, isByte: true)
        region(currentProcessName, offsets.attachedProcess, isByte: false)
        field(threadProcessName, offsets.threadProcess)
        field("PsGetThreadId", offsets.threadID)
        field("PsGetProcessId", offsets.uniqueProcessID)
        field("PsGetProcessPeb", offsets.peb)
        part("PsGetProcessImageFileName", offsets.imageFileName)
    }

    private mutating func start(_ name: String) {
        text.function(name)
        // What compilers and hot patching put before the first instruction proper.
        let prologues: [[UInt8]] =
            is64Bit
            ? [[], [], [0xf3, 0x0f, 0x1e, 0xfa], [0x66, 0x90], [0x0f, 0x1f, 0x44, 0, 0], [0x8b, 0xff], [0x90]]
            : [[], [0x8b, 0xff], [0x8b, 0xff], [0xf3, 0x0f, 0x1e, 0xfb], [0x90], [0x66, 0x90]]
        text.emit(prologues.randomElement(using: &random)!)
    }

    /// A field of what the processor's region points to.
    private mutating func region(_ name: String, _ offset: UInt32, isByte: Bool) {
        start(name)
        let second = Bool.random(using: &random)
        // mov rax/rcx, gs:[188h]; mov eax/ecx, fs:[124h].
        if is64Bit {
            text.emit(0x65, 0x48, 0x8b, second ? 0x0c : 0x04, 0x25)
        } else {
            text.emit(second ? [0x64, 0x8b, 0x0d] : [0x64, 0xa1])
        }
        text.emit32(shape.offsets.currentThread)
        let base: UInt8 = second ? 0x81 : 0x80
        if isByte {
            text.emit([[0x8a], [0x0f, 0xbe], [0x0f, 0xb6]].randomElement(using: &random)! + [base])
        } else {
            text.emit(is64Bit ? [0x48, 0x8b, base] : [0x8b, base])
        }
        text.emit32(offset)
        text.emit(0xc3)
    }

    private mutating func field(_ name: String, _ offset: UInt32) {
        start(name)
        if is64Bit {
            field64(name, offset)
        } else {
            field32(offset)
        }
    }

    private mutating func field64(_ name: String, _ offset: UInt32) {
        switch UInt8.random(in: 0..<7, using: &random) {
        case 0:
            text.emit(0x48, 0x8b, 0xd1, 0x48, 0x8b, 0x82)  // mov rdx, rcx; mov rax, [rdx+offset]
            text.emit32(offset)
        case 1:
            text.emit(0x48, 0x8d, 0x81)  // lea rax, [rcx+offset]; mov rax, [rax]
            text.emit32(offset)
            text.emit(0x48, 0x8b, 0x00)
        case 2:
            text.emit(0x48, 0x81, 0xc1)  // add rcx, offset; mov rax, [rcx]
            text.emit32(offset)
            text.emit(0x48, 0x8b, 0x01)
        case 3:
            // mov [rsp+8], rcx; mov rax, [rsp+8]; mov rax, [rax+offset]
            text.emit(0x48, 0x89, 0x4c, 0x24, 0x08, 0x48, 0x8b, 0x44, 0x24, 0x08, 0x48, 0x8b, 0x80)
            text.emit32(offset)
        case 4:
            // push rbp; mov rbp, rsp; sub rsp, 16; mov [rbp-8], rcx; mov rax, [rbp-8]; mov rax, [rax+offset]
            text.emit(0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0x48, 0x89, 0x4d, 0xf8)
            text.emit(0x48, 0x8b, 0x45, 0xf8, 0x48, 0x8b, 0x80)
            text.emit32(offset)
            // add rsp, 16; pop rbp; or leave
            text.emit(Bool.random(using: &random) ? [0x48, 0x83, 0xc4, 0x10, 0x5d] : [0xc9])
        case 5:
            text.jump(name + "Body")
            text.function(name + "Body")
            text.emit(0x48, 0x8b, 0x81)
            text.emit32(offset)
        default:
            text.emit(0x48, 0x8b, 0x81)  // mov rax, [rcx+offset]
            text.emit32(offset)
        }
        text.emit(0xc3)
    }

    private mutating func field32(_ offset: UInt32) {
        switch UInt8.random(in: 0..<4, using: &random) {
        case 0:
            text.emit(0x8b, 0x44, 0x24, 0x04, 0x8b, 0x80)  // mov eax, [esp+4]; mov eax, [eax+offset]
            text.emit32(offset)
        case 1:
            // push ebp; mov ebp, esp; push ecx; mov eax, [ebp+8]; mov [ebp-4], eax; mov ecx, [ebp-4]
            text.emit(0x55, 0x8b, 0xec, 0x51, 0x8b, 0x45, 0x08, 0x89, 0x45, 0xfc, 0x8b, 0x4d, 0xfc, 0x8b, 0x81)
            text.emit32(offset)
            text.emit(0x8b, 0xe5, 0x5d)  // mov esp, ebp; pop ebp
        case 2:
            text.emit(0x55, 0x8b, 0xec, 0x8b, 0x45, 0x08, 0x05)  // ..; mov eax, [ebp+8]; add eax, offset
            text.emit32(offset)
            text.emit(0x8b, 0x00, 0xc9)  // mov eax, [eax]; leave
        default:
            text.emit(0x55, 0x8b, 0xec, 0x8b, 0x45, 0x08, 0x8b, 0x80)
            text.emit32(offset)
            text.emit(0x5d)
        }
        text.emit(0xc2, 0x04, 0x00)
    }

    /// The address of a part.
    private mutating func part(_ name: String, _ offset: UInt32) {
        start(name)
        let adds = Bool.random(using: &random)
        if is64Bit {
            // lea rax, [rcx+offset]; or mov rax, rcx; add rax, offset.
            text.emit(adds ? [0x48, 0x8b, 0xc1, 0x48, 0x05] : [0x48, 0x8d, 0x81])
            text.emit32(offset)
            text.emit(0xc3)
        } else {
            // mov eax, [esp+4]; add eax, offset; or lea eax, [eax+offset].
            text.emit([0x8b, 0x44, 0x24, 0x04] + (adds ? [0x05] : [0x8d, 0x80]))
            text.emit32(offset)
            text.emit(0xc2, 0x04, 0x00)
        }
    }
}

/// The code that looks services up.
extension ShapedCode {
    mutating func dispatcher64() {
        text.function("KiServiceLinkage")
        text.emit(0xc3)
        text.function("KiServiceInternal", alignment: 64)
        text.emit(0x48, 0x83, 0xec, 0x08, 0x55, 0xfb)  // sub rsp, 8; push rbp; sti
        text.emit(0x65, 0x48, 0x8b, 0x1c, 0x25)  // mov rbx, gs:[188h]
        text.emit32(shape.offsets.currentThread)
        if shape.tableSource == .dispatcher {
            text.refer([0x4c, 0x8d, 0x1d], to: "KiSystemServiceStart")  // lea r11, ..
            text.emit(0x41, 0xff, 0xe3)  // jmp r11
        } else {
            text.emit(0xff, 0xe0)  // jmp rax
        }
        text.function("KiSystemServiceStart")
        text.emit(0x8b, 0xf8, 0xc1, 0xef, 0x07, 0x83, 0xe7, 0x20, 0x25, 0xff, 0x0f, 0, 0)
        if shape.tableSource == .shape {
            // Through the thread, as before Windows 7: add rdi, [rbx+0C0h].
            text.emit(0x48, 0x03, 0xbb, 0xc0, 0, 0, 0, 0xc3)
        } else {
            text.refer([0x4c, 0x8d, 0x15], to: "KeServiceDescriptorTable")
            text.refer([0x4c, 0x8d, 0x1d], to: "KeServiceDescriptorTableShadow")
            text.emit(0xf7, 0x43, 0x78, 0x80, 0, 0, 0, 0xc3)  // test dword ptr [rbx+78h], 80h; ret
        }
    }

    mutating func dispatcher32() {
        text.function("KiSystemService")
        text.emit(0x6a, 0x00, 0x55, 0x53, 0x56, 0x57, 0x0f, 0xa0)  // push 0; push ebp, ebx, esi, edi, fs
        // mov ebx, 30h; mov fs, bx; mov esi, fs:[..]
        text.emit(0xbb, 0x30, 0, 0, 0, 0x66, 0x8e, 0xe3, 0x64, 0x8b, 0x35)
        text.emit32(shape.offsets.currentThread)
        text.emit(0xfb)
        if shape.tableSource == .scan { text.emit(0xff, 0xe0) } else { text.jump("KiSystemServiceRepeat") }
        text.function("KiFastCallEntry")
        text.emit(0xb9, 0x23, 0, 0, 0, 0x6a, 0x30, 0x0f, 0xa1, 0xfb)  // mov ecx, 23h; push 30h; pop fs; sti
        text.label("KiSystemServiceRepeat")
        // mov edi, eax; shr edi, 8; and edi, 30h; mov ecx, edi; add edi, [esi+0BCh]; mov ebx, eax; and eax, 0FFFh
        text.emit(0x8b, 0xf8, 0xc1, 0xef, 0x08, 0x83, 0xe7, 0x30, 0x8b, 0xcf, 0x03, 0xbe, 0xbc, 0, 0, 0)
        text.emit(0x8b, 0xd8, 0x25, 0xff, 0x0f, 0, 0, 0x3b, 0x47, 0x08, 0xc3)  // cmp eax, [edi+8]; ret
    }
}
