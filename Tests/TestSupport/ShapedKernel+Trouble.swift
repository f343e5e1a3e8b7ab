import GuestMemory

/// What hides the kernel, or looks like it.
extension ShapedKernel {
    /// A page of a paging file, as a last-level entry has it.
    var pagedOut: UInt64 { tables.entryWidth == 4 ? 0x0432_1080 : 0x4321_0000_0080 }

    func layOutTrouble() {
        layOutUserDecoys()
        layOutDamage()
        if shape.hasSoftPages { softenPages() }
    }

    /// Makes every third page of the image one that only Windows knows to be in RAM.
    private func softenPages() {
        var prototypes: [UInt64] = []
        var isMapped = false
        for page in stride(from: base, to: base + UInt64(image.size), by: 4096) where page / 4096 % 3 == 0 {
            guard (try? tables.memory.translate(GuestVirtualAddress(page))) != nil else { continue }
            let location = tables.entryAddress(of: page)
            let frame = tables.entry(at: location) & 0x000f_ffff_ffff_f000
            guard page / 4096 % 2 == 0, tables.entryWidth == 8, prototypes.count < 500 else {
                tables.setEntry(at: location, to: frame | 0x8a0)
                continue
            }
            if !isMapped { tables.mapNew(places.prototypes, .kernelData) }
            isMapped = true
            let prototype = places.prototypes + UInt64(prototypes.count) * 8
            prototypes.append(prototype)
            tables.write(frame | (prototypes.count % 2 == 0 ? 0x121 : 0x8a0), at: prototype)
            tables.setEntry(at: location, to: prototype << (wordSize == 8 ? 16 : 32) | 0x400)
        }
        // The tables above may be new.
        for process in processes.dropFirst() { shareKernelHalf(with: process.tables) }
    }

    func layOutDecoys() {
        let decoys = shape.decoys
        if decoys.contains(.foreignImage) { addImage("driver.sys", before: 0x40_0000) }
        if decoys.contains(.emptyKernel) { addImage("ntoskrnl.exe", before: 0x80_0000) }
        if decoys.contains(.secondKernel) { addSecondKernel() }
        if decoys.contains(.lyingExports) { breakNames() }
        if decoys.contains(.takenVector) {
            setGate(3, shape.architecture == .x64 ? 0xffff_f7ff_1234_5678 : 0xbf12_3456, isOpen: true)
        }
        if decoys.contains(.innerImage), let table = image.sections.first(where: { $0.virtualSize == 0x3000 }) {
            // Between the table and the exports.
            let page = (UInt64(table.rva) + 0x1fff) & ~0xfff
            if page >= UInt64(table.rva) + UInt64(table.contents.count) {
                tables.write([0x4d, 0x5a, 0x90, 0x00] + [UInt8](repeating: 0xff, count: 0x40), at: base + page)
            }
        }
    }

    /// An image that ends behind the kernel.
    private func addImage(_ name: String, before distance: UInt64) {
        var decoy = SyntheticImage(name: name, size: UInt32(distance) + image.size, sections: [], exportRVA: 0x800)
        decoy.sections = [
            .init(name: ".text", rva: 0x400, virtualSize: 0x100, characteristics: SyntheticImage.Section.code)
        ]
        decoy.is64Bit = image.is64Bit
        decoy.exports["DriverEntry"] = 0x400
        let address = base - distance
        tables.mapNew(address, .kernelData)
        for part in decoy.parts() { tables.write(part.bytes, at: address + UInt64(part.rva)) }
    }

    /// An image before the kernel that exports what the kernel does.
    private func addSecondKernel() {
        let distance: UInt64 = 0x20_0000
        var decoy = SyntheticImage(
            name: "ntoskrnl.exe", size: UInt32(distance) + image.size, sections: image.sections, exportRVA: 0x800)
        decoy.is64Bit = image.is64Bit
        decoy.sections = [
            .init(
                name: ".text", rva: UInt32(distance), virtualSize: 0x1000, characteristics: SyntheticImage.Section.code)
        ]
        for name in ["NtBuildNumber", "PsInitialSystemProcess"] {
            decoy.exports[name] = UInt32(distance) + symbols[name]!
        }
        let address = base - distance
        tables.mapNew(address, .kernelData)
        for part in decoy.parts() { tables.write(part.bytes, at: address + UInt64(part.rva)) }
    }

    /// Points the names of exports that nobody needs outside the image.
    private func breakNames() {
        let names = image.exports.keys.sorted()
        let array = base + UInt64(image.exportRVA) + 40 + UInt64(names.count) * 4
        for (name, rva) in [("KeBugCheckEx", UInt32.max), ("NtOutside", image.size - 1)] {
            guard let index = names.firstIndex(of: name) else { continue }
            tables.write(rva, at: array + UInt64(index) * 4)
        }
    }

    private func layOutUserDecoys() {
        let hooked = shape.decoys.contains(.hookedStub)
        guard hooked || shape.decoys.contains(.forgedStub),
            let victim = processes.indices.dropFirst().first(where: { shape.processes[$0 - 1].hasModules })
        else { return }
        let stub = ntdllAddress("NtSetSystemPowerState")
        let page = stub & ~0xfff
        let victimTables = processes[victim].tables
        let copy = ram.allocate()
        ram.store(try! victimTables.memory.bytes(at: GuestVirtualAddress(page), count: 4096), at: copy)
        victimTables.map(page, to: copy, .userCode)
        if hooked { return victimTables.write([0xe9, 0, 1, 0, 0], at: stub) }
        // The number follows the first B8.
        let code = try! victimTables.memory.bytes(at: GuestVirtualAddress(stub), count: 16)
        let place = stub + UInt64(code.firstIndex(of: 0xb8)!) + 1
        victimTables.write(UInt16((shape.numbers["SetSystemPowerState"]! + 1) % shape.serviceCount), at: place)
    }

    public func ntdllAddress(_ name: String) -> UInt64 {
        places.userImage + UInt64(ShapedUserImage(shape, base: places.userImage).symbols[name]!)
    }

    private func layOutDamage() {
        switch shape.damage {
        case .none: break
        case .headerAbsent: setEntry(of: base, to: pagedOut)
        case .headerZeroed: tables.write([UInt8](repeating: 0, count: 0x300), at: base)
        case .tableAbsent: setEntry(of: address("KiServiceTable"), to: pagedOut)
        case .exportsAbsent: setEntry(of: base + UInt64(image.exportRVA), to: pagedOut)
        case .accessorAbsent: setEntry(of: address("PsGetProcessId"), to: pagedOut)
        case .powerFunctionAbsent: setEntry(of: address("NtSetSystemPowerState"), to: pagedOut)
        case .ntdllAbsent:
            let page = ntdllAddress("NtSetSystemPowerState") & ~0xfff
            for process in processes.dropFirst() {
                process.tables.setEntry(at: process.tables.entryAddress(of: page), to: pagedOut)
            }
        case .noNtdll:
            for process in processes.dropFirst() {
                write(0, at: process.peb + shape.architecture.layout.loaderData, in: process.tables)
            }
        case .noSystemProcess: writeWord(0, at: address("PsInitialSystemProcess"))
        }
    }
}
