/// The user-mode side of a synthetic guest: ntdll, and the loader's data that lead to it.
struct UserImage {
    let bytes: [UInt8]
    let symbols: [String: UInt32]
    var pages: Int { bytes.count / 4096 }

    init(base: UInt64) {
        var code = CodeBuilder(origin: 0x1000)
        let services: [(String, UInt32)] = [
            ("NtClose", SyntheticKernel.Layout.closeNumber),
            ("NtQuerySystemInformation", SyntheticKernel.Layout.queryNumber),
            ("NtSetSystemPowerState", SyntheticKernel.Layout.powerNumber),
        ]
        for (name, number) in services {
            code.function(name)
            code.emit(0x4c, 0x8b, 0xd1, 0xb8)  // mov r10, rcx; mov eax, number
            code.emit32(number)
            // test byte ptr [7FFE0308h], 1; jne +3; syscall; ret; int 2Eh; ret
            code.emit(0xf6, 0x04, 0x25, 0x08, 0x03, 0xfe, 0x7f, 0x01, 0x75, 0x03, 0x0f, 0x05, 0xc3, 0xcd, 0x2e, 0xc3)
        }
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
        image.exports = code.symbols
        bytes = image.bytes()
    }

    /// PEB, PEB_LDR_DATA and two LDR_DATA_TABLE_ENTRYs: the program and ntdll.
    static func layOutLoaderData(in tables: PageTableBuilder, peb: UInt64, ntdll: UInt64) {
        tables.mapNew(peb, pages: 2, .userData)
        let loader = peb + 0x800
        let head = loader + 0x10
        let entries = [peb + 0x1000, peb + 0x1200]
        let modules: [(UInt64, String)] = [(0x7ff6_0000_0000, "smss.exe"), (ntdll, "ntdll.dll")]
        tables.write(loader, at: peb + 0x18)
        let nodes = [head] + entries
        for (index, node) in nodes.enumerated() {
            let next = nodes[(index + 1) % nodes.count]
            tables.write(next, at: node)
            tables.write(node, at: next + 8)
        }
        for (entry, module) in zip(entries, modules) {
            tables.write(module.0, at: entry + 0x30)
            let text = entry + 0x100
            tables.write(UInt16(module.1.utf16.count * 2), at: entry + 0x58)
            tables.write(text, at: entry + 0x60)
            for (index, unit) in module.1.utf16.enumerated() { tables.write(unit, at: text + UInt64(index) * 2) }
        }
    }
}
