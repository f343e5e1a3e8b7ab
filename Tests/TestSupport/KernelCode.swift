/// Assembles a synthetic kernel's image.
struct KernelCode {
    let options: SyntheticKernelOptions
    private var text = CodeBuilder(origin: 0x1000)
    private var lock = CodeBuilder(origin: 0x4000)
    private var data = CodeBuilder(origin: 0x8000)
    private var table = CodeBuilder(origin: 0x6000)
    typealias Layout = SyntheticKernel.Layout

    init(options: SyntheticKernelOptions) { self.options = options }

    static let exported =
        [
            "ExGetPreviousMode", "PsGetCurrentProcess", "PsGetThreadProcess", "PsGetThreadId", "PsGetProcessId",
            "PsGetProcessPeb", "PsGetProcessImageFileName", "NtBuildNumber", "PsInitialSystemProcess", "ZwClose",
            "ZwQuerySystemInformation", "NtClose", "NtQuerySystemInformation", "KeDelayExecutionThread", "KeBugCheckEx",
            "PsLoadedModuleList",
        ] + agentServices

    /// What agents need beside `ZwClose`.
    private static let agentServices = [
        "ExAllocatePoolWithTag", "ExFreePoolWithTag", "PsCreateSystemThread", "PsTerminateSystemThread",
        "KeInitializeEvent", "KeSetEvent", "KeWaitForSingleObject",
    ]

    mutating func assemble() -> (SyntheticImage, [String: UInt32]) {
        traps()
        accessors()
        dispatcher()
        services()
        powerFunction()
        variables()
        var symbols: [String: UInt32] = [:]
        for part in [text, lock, data, table] { symbols.merge(part.symbols) { first, _ in first } }
        serviceTable(symbols)
        symbols.merge(table.symbols) { first, _ in first }
        for part in [\KernelCode.text, \.lock, \.data, \.table] { self[keyPath: part].resolve(symbols) }

        var image = SyntheticImage(
            name: options.moduleName, size: 0xb000,
            sections: [
                section(".text", text, SyntheticImage.Section.code),
                section("PAGELK", lock, SyntheticImage.Section.code),
                section(".rdata", table, SyntheticImage.Section.readOnly, size: 0x2000),
                section(".data", data, SyntheticImage.Section.data, size: 0x1000),
                .init(
                    name: "INIT", rva: 0x9000, virtualSize: 0x800,
                    characteristics: SyntheticImage.Section.discardableCode),
            ], exportRVA: 0x7000)
        for name in Self.exported where !options.withoutExports.contains(name) { image.exports[name] = symbols[name]! }
        if options.bugChecks != nil, !options.withoutExports.contains("KeBugCheck") {
            image.exports["KeBugCheck"] = symbols["KeBugCheck"]
        }
        return (image, symbols)
    }

    private func section(
        _ name: String, _ code: CodeBuilder, _ characteristics: UInt32, size: UInt32? = nil
    ) -> SyntheticImage.Section {
        .init(
            name: name, rva: code.origin, virtualSize: size ?? UInt32(code.bytes.count),
            characteristics: characteristics, contents: code.bytes)
    }

    private mutating func traps() {
        for vector in 0..<32 {
            text.function("KiTrap\(vector)")
            text.emit(0x6a, UInt8(vector), 0x48, 0xcf)  // push vector; iretq
        }
    }

    private mutating func accessors() {
        // mov rax, gs:[188h]; mov al, [rax+232h]; ret
        let currentThread: [UInt8] = [0x65, 0x48, 0x8b, 0x04, 0x25]
        text.function("ExGetPreviousMode")
        text.emit(currentThread)
        text.emit32(Layout.currentThread)
        text.emit(0x8a, 0x80)
        text.emit32(Layout.previousMode)
        text.emit(0xc3)
        text.function("PsGetCurrentProcess")
        text.emit(currentThread)
        text.emit32(Layout.currentThread)
        text.emit(0x48, 0x8b, 0x80)
        text.emit32(Layout.attachedProcess)
        text.emit(0xc3)
        let fields: [(String, UInt32)] = [
            ("PsGetThreadProcess", Layout.threadProcess), ("PsGetThreadId", Layout.threadID),
            ("PsGetProcessId", Layout.uniqueProcessID), ("PsGetProcessPeb", Layout.peb),
        ]
        for (name, offset) in fields {
            text.function(name)
            if options.unoptimisedAccessors {
                // push rbp; mov rbp, rsp; sub rsp, 16; mov [rbp-8], rcx; mov rax, [rbp-8]
                text.emit(0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0x48, 0x89, 0x4d, 0xf8)
                text.emit(0x48, 0x8b, 0x45, 0xf8, 0x48, 0x8b, 0x80)  // mov rax, [rax+offset]
                text.emit32(offset)
                text.emit(0x48, 0x83, 0xc4, 0x10, 0x5d, 0xc3)  // add rsp, 16; pop rbp; ret
            } else {
                text.emit(0x48, 0x8b, 0x81)  // mov rax, [rcx+offset]
                text.emit32(offset)
                text.emit(0xc3)
            }
        }
        text.function("PsGetProcessImageFileName")
        text.emit(0x48, 0x8d, 0x81)  // lea rax, [rcx+offset]
        text.emit32(Layout.imageFileName)
        text.emit(0xc3)
    }

    private mutating func dispatcher() {
        text.function("KiServiceLinkage")
        text.emit(0xc3)
        text.function("KiServiceInternal", alignment: 64)
        text.emit(0x48, 0x83, 0xec, 0x08, 0x55, 0xfb)  // sub rsp, 8; push rbp; sti
        text.emit(0x65, 0x48, 0x8b, 0x1c, 0x25)  // mov rbx, gs:[188h]
        text.emit32(Layout.currentThread)
        if options.opaqueDispatcher {
            text.emit(0xff, 0xe0)  // jmp rax
        } else {
            text.refer([0x4c, 0x8d, 0x1d], to: "KiSystemServiceStart")  // lea r11, ..
            text.emit(0x41, 0xff, 0xe3)  // jmp r11
        }
        text.function("KiSystemServiceStart")
        text.emit(0x8b, 0xf8, 0xc1, 0xef, 0x07, 0x83, 0xe7, 0x20, 0x25, 0xff, 0x0f, 0, 0)
        text.refer([0x4c, 0x8d, 0x15], to: "KeServiceDescriptorTable")
        text.refer([0x4c, 0x8d, 0x1d], to: "KeServiceDescriptorTableShadow")
        text.emit(0xf7, 0x43, 0x78, 0x80, 0, 0, 0, 0xc3)  // test dword ptr [rbx+78h], 80h; ret
    }

    private mutating func stub(_ name: String, _ number: UInt32) {
        text.function(name, alignment: 32)
        text.emit(0x48, 0x8b, 0xc4, 0xfa, 0x48, 0x83, 0xec, 0x10, 0x50, 0x9c, 0x6a, 0x10)
        text.refer([0x48, 0x8d, 0x05], to: "KiServiceLinkage")
        text.emit(0x50, 0xb8)
        text.emit32(number)
        text.jump("KiServiceInternal")
    }

    private mutating func services() {
        stub("ZwClose", Layout.closeNumber)
        stub("ZwQuerySystemInformation", Layout.queryNumber)
        stub("ZwSetSystemPowerState", Layout.powerNumber)
        options.bugChecks?(&text)
        for name in [
            "NtClose", "NtQuerySystemInformation", "NtNotImplemented", "KeDelayExecutionThread", "KeBugCheckEx",
        ] + Self.agentServices where text.symbols[name] == nil {
            text.function(name)
            text.emit(0x33, 0xc0, 0xc3)  // xor eax, eax; ret
        }
    }

    private mutating func powerFunction() {
        lock.function("PopUnrelated")
        lock.emit(0x33, 0xc0, 0xc3)
        if options.duplicatePrologue { lock.emit(options.powerFunctionPrologue + [0xc3]) }
        lock.function("NtSetSystemPowerState")
        lock.emit(options.powerFunctionPrologue)
        lock.call("PopUnrelated")
        lock.emit(0x84, 0xc0, 0x74, 0x06)  // test al, al; je +6: over the call and the RET
        let target =
            switch options.reentryDepth {
            case nil: "PopUnrelated"
            case 0: "ZwSetSystemPowerState"
            default: "PopReenter1"
            }
        if options.reentryByTailJump { lock.jump(target) } else { lock.call(target) }
        lock.emit(0xc3)
        lock.emit(0xff, 0xd0, 0xc3)  // call rax; ret
        let depth = options.reentryDepth ?? 0
        if depth > 0 {
            for level in 1...depth {
                lock.function("PopReenter\(level)")
                lock.emit(0x48, 0x83, 0xec, 0x28)  // sub rsp, 28h
                lock.call(level == depth ? "ZwSetSystemPowerState" : "PopReenter\(level + 1)")
                lock.emit(0x48, 0x83, 0xc4, 0x28, 0xc3)  // add rsp, 28h; ret
            }
        }
    }

    private mutating func variables() {
        data.label("NtBuildNumber")
        data.emit32(0xf000_0000 | options.build)
        data.align(16)
        data.label("PsInitialSystemProcess")
        data.emit([UInt8](repeating: 0, count: 16))
        data.label("PsActiveProcessHead")
        data.emit([UInt8](repeating: 0, count: 32))
        data.label("PsLoadedModuleList")
        let head = options.base + UInt64(data.position)
        for _ in 0..<2 { data.emit((0..<8).map { UInt8(truncatingIfNeeded: head >> (8 * $0)) }) }
        data.label("KeServiceDescriptorTable")
        let base = options.base + 0x6000
        data.emit((0..<8).map { UInt8(truncatingIfNeeded: base >> (8 * $0)) })
        data.emit([UInt8](repeating: 0, count: 8))
        data.emit32(options.serviceCount)
        data.emit([UInt8](repeating: 0, count: 12))
        data.label("KeServiceDescriptorTableShadow")
        data.emit([UInt8](repeating: 0, count: 64))
    }

    private mutating func serviceTable(_ symbols: [String: UInt32]) {
        table.label("KiServiceTable")
        for number in 0..<options.serviceCount {
            let name =
                switch number {
                case Layout.closeNumber: "NtClose"
                case Layout.queryNumber: "NtQuerySystemInformation"
                case Layout.powerNumber: "NtSetSystemPowerState"
                default: "NtNotImplemented"
                }
            table.emit32((symbols[name]! &- 0x6000) << 4)
        }
    }
}
