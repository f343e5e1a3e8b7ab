import WindowsGuest

/// Assembles the sections of a kernel of some shape.
struct ShapedCode {
    let shape: KernelShape
    var text: CodeBuilder
    var lock: CodeBuilder
    var table: CodeBuilder
    var data: CodeBuilder
    /// KVASCODE: where a vCPU in user mode enters the kernel under page-table isolation.
    var entry: CodeBuilder
    let initOrigin: UInt32
    let imageSize: UInt32
    var random: SeededGenerator
    private(set) var symbols: [String: UInt32] = [:]

    /// Room for each of text, lock, table, data, init, entry, in bytes.
    private static let capacities: [UInt32] = [0x2000, 0x800, 0x3000, 0x800, 0x200, 0x800]
    /// In the table's section, behind the table.
    static let exportOffset: UInt32 = 0x2000

    var is64Bit: Bool { shape.architecture == .x64 }
    /// The services that are exported both ways.
    var exportedServices: [String] { shape.numbers.keys.filter { $0 != "SetSystemPowerState" }.sorted() }

    init(_ shape: KernelShape) {
        self.shape = shape
        random = SeededGenerator(seed: shape.codeSeed)
        let alignment = max(shape.sectionAlignment, 0x20)
        var origins = [UInt32](repeating: 0, count: 6)
        var next: UInt32 = 0x800
        for section in shape.sectionOrder {
            next = (next + alignment - 1) / alignment * alignment
            origins[section] = next
            next += Self.capacities[section]
        }
        imageSize = (next + 0xfff) & ~0xfff
        text = CodeBuilder(origin: origins[0])
        lock = CodeBuilder(origin: origins[1])
        table = CodeBuilder(origin: origins[2])
        data = CodeBuilder(origin: origins[3])
        initOrigin = origins[4]
        entry = CodeBuilder(origin: origins[5])
    }

    mutating func assemble() -> SyntheticImage {
        traps()
        accessors()
        if is64Bit { dispatcher64() } else { dispatcher32() }
        services()
        powerFunction()
        variables()
        serviceTable()
        let parts = [\ShapedCode.text, \.lock, \.table, \.data, \.entry]
        for part in parts { symbols.merge(self[keyPath: part].symbols) { first, _ in first } }
        for part in parts { self[keyPath: part].resolve(symbols, base: shape.base) }
        precondition(text.bytes.count <= 0x2000 && table.bytes.count <= 0x2000 && lock.bytes.count <= 0x800)
        precondition(data.bytes.count <= 0x800 && entry.bytes.count <= 0x800)
        return image()
    }

    private func image() -> SyntheticImage {
        func section(_ index: Int, _ code: CodeBuilder, _ rights: UInt32, _ size: UInt32? = nil)
            -> SyntheticImage.Section
        {
            .init(
                name: shape.sectionNames[index], rva: code.origin, virtualSize: size ?? UInt32(code.bytes.count),
                characteristics: rights, contents: code.bytes)
        }
        var sections = [
            section(0, text, SyntheticImage.Section.code), section(1, lock, SyntheticImage.Section.code),
            section(2, table, SyntheticImage.Section.readOnly, 0x3000),
            section(3, data, SyntheticImage.Section.data, 0x800),
            .init(
                name: shape.sectionNames[4], rva: initOrigin, virtualSize: 0x200,
                characteristics: SyntheticImage.Section.discardableCode),
            section(5, entry, SyntheticImage.Section.code, 0x800),
        ]
        sections = shape.sectionOrder.map { sections[$0] }
        if shape.decoys.contains(.overlappingSection) {
            sections.append(
                .init(
                    name: "OVER", rva: table.origin, virtualSize: 0x100,
                    characteristics: SyntheticImage.Section.readOnly))
        }
        if shape.decoys.contains(.wrappedSection) {
            sections.append(
                .init(name: "WRAP", rva: 0xffff_f000, virtualSize: 0x2000, characteristics: SyntheticImage.Section.code)
            )
        }
        var image = SyntheticImage(
            name: shape.moduleName, size: imageSize, sections: sections, exportRVA: table.origin + Self.exportOffset)
        image.is64Bit = is64Bit
        image.sectionAlignment = shape.sectionAlignment
        image.headerOffset = shape.headerOffset
        for name in exportedNames { image.exports[name] = symbols[name]! }
        if shape.decoys.contains(.lyingExports) {
            image.exports["NtForwarded"] = image.exportRVA + 0x20
            image.exports["ZwForwarded"] = image.exportRVA + 0x24
            image.exports["NtOutside"] = imageSize + 0x1000
            image.exports["NtWrapped"] = UInt32.max
        }
        return image
    }

    private var exportedNames: [String] {
        var names = [
            "ExGetPreviousMode", "PsGetThreadId", "PsGetProcessId", "PsGetProcessPeb", "PsGetProcessImageFileName",
            "NtBuildNumber", "PsInitialSystemProcess", "KeDelayExecutionThread", "KeBugCheckEx", "PsLoadedModuleList",
            currentProcessName, threadProcessName,
        ]
        for service in exportedServices { names += ["Zw" + service, "Nt" + service] }
        if shape.bugChecks != nil { names.append("KeBugCheck") }
        if shape.tableSource == .export { names.append("KeServiceDescriptorTable") }
        if shape.decoys.contains(.falseStub) { names += ["ZwFalse", "NtFalse"] }
        return names
    }

    var currentProcessName: String { shape.codeSeed & 1 == 0 ? "PsGetCurrentProcess" : "IoGetCurrentProcess" }
    var threadProcessName: String { shape.codeSeed & 2 == 0 ? "PsGetThreadProcess" : "IoThreadToProcess" }

    private mutating func traps() {
        for vector in 0..<32 {
            text.function("KiTrap\(vector)")
            text.emit(0x6a, UInt8(vector))  // push vector
            text.emit(is64Bit ? [0x48, 0xcf] : [0xcf])
            // cld; jmp to the handler proper: the tables are switched in between.
            entry.function("KiTrapShadow\(vector)")
            entry.emit(0xfc)
            entry.jump("KiTrap\(vector)")
        }
        entry.function("KiSystemServiceShadow")
        entry.emit(0xfc)
        entry.jump(is64Bit ? "KiTrap0" : "KiSystemService")
    }

    private mutating func services() {
        for service in exportedServices + ["SetSystemPowerState"] {
            let isHooked = shape.decoys.contains(.hookedKernelStub) && service == exportedServices.first
            let entry = is64Bit ? "KiServiceInternal" : "KiSystemService"
            stub("Zw" + service, shape.numbers[service]!, to: isHooked ? "KiElsewhere" : entry)
        }
        if shape.decoys.contains(.falseStub) {
            stub("ZwFalse", shape.numbers["SetSystemPowerState"]!, to: "KiElsewhere")
        }
        let functions = (exportedServices + ["NotImplemented", "False"]).map { "Nt" + $0 }
        if shape.decoys.contains(.falseDispatcher), is64Bit {
            text.function("KiFalseDispatcher")
            // With the worst there can be behind it.
            let copied = shape.decoys.contains(.copiedTable)
            text.refer([0x4c, 0x8d, 0x15], to: copied ? "KiCopiedDescriptor" : "KiFakeDescriptor")
            text.refer([0x4c, 0x8d, 0x1d], to: "KiFakeDescriptor")
            text.emit(0xf7, 0x43, 0x78, 0x80, 0, 0, 0, 0xc3)
        }
        shape.bugChecks?(&text)
        for name in functions + ["KeDelayExecutionThread", "KeBugCheckEx", "KiElsewhere"]
        where text.symbols[name] == nil {
            text.function(name)
            text.emit(0x33, 0xc0, 0xc3)  // xor eax, eax; ret
        }
    }

    private mutating func stub(_ name: String, _ number: UInt32, to target: String) {
        text.function(name, alignment: is64Bit ? 32 : 16)
        if is64Bit {
            if Bool.random(using: &random) { text.emit(0xf3, 0x0f, 0x1e, 0xfa) }  // endbr64
            text.emit(0x48, 0x8b, 0xc4, 0xfa, 0x48, 0x83, 0xec, 0x10, 0x50, 0x9c, 0x6a, 0x10)
            text.refer([0x48, 0x8d, 0x05], to: "KiServiceLinkage")
            text.emit(0x50, 0xb8)
            text.emit32(number)
            text.jump(target)
        } else {
            if Bool.random(using: &random) { text.emit(0xf3, 0x0f, 0x1e, 0xfb) }  // endbr32
            text.emit(0xb8)
            text.emit32(number)
            text.emit(0x8d, 0x54, 0x24, 0x04, 0x9c, 0x6a, 0x08)  // lea edx, [esp+4]; pushfd; push 8
            text.call(target)
            text.emit(0xc2, 0x0c, 0x00)
        }
    }

    private mutating func powerFunction() {
        lock.function("PopUnrelated")
        lock.emit(0x33, 0xc0, 0xc3)
        lock.function("PopSimilar")
        let decoys = shape.decoys
        if decoys.contains(.doublePattern) || decoys.contains(.patternElsewhere) { lock.emit(shape.mark) }
        lock.emit(0xc3)
        lock.function("NtSetSystemPowerState")
        if !decoys.contains(.patternElsewhere) { lock.emit(shape.mark) }
        lock.emit(0x33, 0xd2)
        if !is64Bit { lock.emit(0x55, 0x8b, 0xec) }
        lock.call("PopUnrelated")
        lock.emit(0x84, 0xc0, 0x74, is64Bit ? 6 : 14)  // test al, al; je over the call
        if !is64Bit { lock.emit(0xff, 0x75, 0x10, 0xff, 0x75, 0x0c, 0xff, 0x75, 0x08) }  // push [ebp+..]
        lock.call("ZwSetSystemPowerState")
        lock.emit(is64Bit ? [0xc3] : [0x5d, 0xc2, 0x0c, 0x00])
        lock.emit(0xff, 0xd0, 0xc3)  // call (r)ax; ret
    }

    private mutating func variables() {
        let width = Int(shape.architecture.pointerSize)
        func zeroes(_ words: Int) { data.emit([UInt8](repeating: 0, count: words * width)) }
        data.emit([UInt8](repeating: 0, count: 8 * Int.random(in: 0...16, using: &random)))
        data.label("NtBuildNumber")
        data.emit32(0xf000_0000 | shape.build)
        data.align(16)
        data.label("PsInitialSystemProcess")
        zeroes(2)
        data.label("PsActiveProcessHead")
        zeroes(2)
        data.label("PsLoadedModuleList")
        for _ in 0..<2 { data.point(to: "PsLoadedModuleList", width: width) }
        if !shape.decoys.isDisjoint(with: [.describedFakeTable, .falseDispatcher]) {
            descriptor("KiFakeDescriptor", of: "KiFakeTable", width)
        }
        descriptor("KeServiceDescriptorTable", of: "KiServiceTable", width)
        zeroes(12)
        descriptor("KeServiceDescriptorTableShadow", of: "KiServiceTable", width)
        descriptor("W32pDescriptor", of: "KiFakeTable", width)
        zeroes(8)
        if shape.decoys.contains(.copiedTable) { descriptor("KiCopiedDescriptor", of: "KiCopiedTable", width) }
    }

    /// KSERVICE_TABLE_DESCRIPTOR: Base, Count, Limit, Number.
    private mutating func descriptor(_ name: String, of table: String, _ width: Int) {
        data.align(16)
        data.label(name)
        data.point(to: table, width: width)
        data.emit([UInt8](repeating: 0, count: width))
        data.emit32(shape.serviceCount)
        if is64Bit { data.emit32(0) }
        data.point(to: "KiArgumentTable", width: width)
    }

    private mutating func serviceTable() {
        for part in [text, lock] { symbols.merge(part.symbols) { first, _ in first } }
        table.align(32)
        let names = Dictionary(uniqueKeysWithValues: shape.numbers.map { ($1, "Nt" + $0) })
        func place(_ label: String, _ name: (UInt32) -> String, count: UInt32) {
            table.align(32)
            table.label(label)
            let start = table.position
            for number in 0..<count { emitEntry(name(number), start: start, number: number) }
        }
        if shape.decoys.contains(.fakeTable) { place("KiPointers", { _ in "NtNotImplemented" }, count: 64) }
        place("KiFakeTable", { _ in "NtNotImplemented" }, count: 16)
        let unused = "NtNotImplemented"
        place("KiServiceTable", { names[$0] ?? unused }, count: shape.serviceCount)
        table.emit32(shape.serviceCount)
        table.label("KiArgumentTable")
        for _ in 0..<shape.serviceCount { table.emit(UInt8.random(in: 0...16, using: &random) * 4) }
        if shape.decoys.contains(.copiedTable) {
            place(
                "KiCopiedTable", { names[$0].map { $0 == "NtSetSystemPowerState" ? "PopUnrelated" : $0 } ?? unused },
                count: shape.serviceCount)
        }
    }

    private mutating func emitEntry(_ name: String, start: UInt32, number: UInt32) {
        switch ServiceTable.Encoding(architecture: shape.architecture, build: shape.build) {
        case .absolute: table.point(to: name)
        case .shifted: table.emit32((symbols[name]! &- start) << 4 | number & 7)
        case .masked: table.emit32((symbols[name]! &- start) & ~0xf | number & 7)
        }
    }
}
