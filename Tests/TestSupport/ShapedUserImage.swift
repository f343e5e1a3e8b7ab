import WindowsGuest

/// The ntdll of a guest of some shape, and the loader's data that lead to it.
struct ShapedUserImage {
    let bytes: [UInt8]
    let symbols: [String: UInt32]
    var pages: Int { bytes.count / 4096 }

    init(_ shape: KernelShape, base: UInt64) {
        var code = CodeBuilder(origin: 0x1000)
        for (name, number) in shape.numbers.sorted(by: { $0.key < $1.key }) {
            code.function("Nt" + name)
            Self.emit(shape.stub, number, &code)
        }
        code.function("KiSystemCall")
        code.emit(0x8b, 0xd4, 0x0f, 0x34, 0xc3)
        code.resolve(code.symbols, base: base)
        symbols = code.symbols
        var image = SyntheticImage(
            name: "ntdll.dll", size: 0x3000,
            sections: [
                .init(
                    name: ".text", rva: 0x1000, virtualSize: 0x1000, characteristics: SyntheticImage.Section.code,
                    contents: code.bytes),
                .init(
                    name: ".rdata", rva: 0x2000, virtualSize: 0x1000,
                    characteristics: SyntheticImage.Section.readOnly),
            ], exportRVA: 0x2000)
        image.is64Bit = shape.architecture == .x64 && shape.stub != .emulated
        image.exports = code.symbols
        bytes = image.bytes()
    }

    static func emit(_ shape: KernelShape.StubShape, _ number: UInt32, _ code: inout CodeBuilder) {
        func load(_ number: UInt32) {
            code.emit(0xb8)
            code.emit32(number)
        }
        let end: [UInt8] = [0xc2, 0x0c, 0x00]
        switch shape {
        case .fast:
            code.emit(0x4c, 0x8b, 0xd1)
            load(number)
            code.emit(0x0f, 0x05, 0xc3)
        case .reordered:
            code.emit(0xf3, 0x0f, 0x1e, 0xfa)
            load(number)
            code.emit(0x4c, 0x8b, 0xd1, 0x0f, 0x05, 0xc3)
        case .tested:
            code.emit(0x4c, 0x8b, 0xd1)
            load(number)
            // test byte ptr [7FFE0308h], 1; jne +3; syscall; ret; int 2Eh; ret
            code.emit(0xf6, 0x04, 0x25, 0x08, 0x03, 0xfe, 0x7f, 0x01, 0x75, 0x03, 0x0f, 0x05, 0xc3, 0xcd, 0x2e, 0xc3)
        case .sharedPointer, .sharedCode:
            load(number)
            code.emit(0xba, 0x00, 0x03, 0xfe, 0x7f)  // mov edx, 7FFE0300h
            code.emit([0xff, shape == .sharedCode ? 0xd2 : 0x12] + end)
        case .interrupt:
            load(number)
            code.emit([0x8d, 0x54, 0x24, 0x04, 0xcd, 0x2e] + end)
        case .nearEntry:
            load(number)
            code.emit([0xe8, 0x03, 0, 0, 0] + end + [0x8b, 0xd4, 0x0f, 0x34, 0xc3])
        case .function:
            load(number)
            code.point([0xba], to: "KiSystemCall")
            code.emit([0xff, 0xd2] + end)
        case .emulated:
            load(number | 0x7_0000)
            // xor ecx, ecx; lea edx, [esp+4]; call fs:[0C0h]; add esp, 4
            code.emit([0x33, 0xc9, 0x8d, 0x54, 0x24, 0x04, 0x64, 0xff, 0x15, 0xc0, 0, 0, 0, 0x83, 0xc4, 0x04] + end)
        }
    }

    /// PEB, PEB_LDR_DATA and the LDR_DATA_TABLE_ENTRYs of the program and, if it is loaded, of ntdll.
    static func layOutLoaderData(of guest: ShapedKernel, in tables: PageTableBuilder, ntdll: UInt64?) {
        let layout = guest.shape.architecture.layout
        let peb = guest.places.peb
        tables.mapNew(peb, pages: 2, .userData)
        func write(_ value: UInt64, _ address: UInt64) { guest.write(value, at: address, in: tables) }
        let loader = peb + 0x800
        let head = loader + layout.loadOrderList
        var modules = [(base: UInt64(0x1_0000_0000) >> (guest.wordSize == 8 ? 0 : 8), name: "program.exe")]
        if let ntdll { modules.append((ntdll, "ntdll.dll")) }
        let entries = modules.indices.map { peb + 0x1000 + UInt64($0) * 0x200 }
        write(loader, peb + layout.loaderData)
        let nodes = [head] + entries
        for (index, node) in nodes.enumerated() {
            let next = nodes[(index + 1) % nodes.count]
            write(next, node)
            write(node, next + guest.wordSize)
        }
        for (entry, module) in zip(entries, modules) {
            write(module.base, entry + layout.moduleBase)
            let text = entry + 0x100
            tables.write(UInt16(module.name.utf16.count * 2), at: entry + layout.moduleName)
            write(text, entry + layout.moduleName + guest.wordSize)
            for (index, unit) in module.name.utf16.enumerated() { tables.write(unit, at: text + UInt64(index) * 2) }
        }
    }
}
