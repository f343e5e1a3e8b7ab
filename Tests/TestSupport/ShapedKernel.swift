import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// A guest whose kernel is of some shape, laid out in synthetic RAM: enough of it for discovery.
public final class ShapedKernel {
    public struct Process {
        public var object: UInt64
        public var id: UInt64
        public var name: String
        public var tables: PageTableBuilder
        public var peb: UInt64
    }

    public let shape: KernelShape
    public let ram: SyntheticRAM
    /// The System process's.
    public let tables: PageTableBuilder
    public private(set) var symbols: [String: UInt32] = [:]
    public private(set) var image: SyntheticImage
    public private(set) var processes: [Process] = []
    public let places: Places
    private var shadowRoot: UInt64 = 0
    var wordSize: UInt64 { shape.architecture.pointerSize }

    /// Where a guest of an architecture has what is not the kernel's image.
    public struct Places: Sendable {
        public let idt, pool, prototypes, userImage, peb, processorRegion, sharedData: UInt64

        init(_ architecture: KernelArchitecture) {
            switch architecture {
            case .x64:
                (idt, pool, prototypes) = (0xffff_e800_1000_0000, 0xffff_e900_0001_0000, 0xffff_ea00_0000_0000)
                (userImage, peb, processorRegion) = (0x7ffa_1230_0000, 0x2e_4000_0000, 0xffff_e800_1001_0000)
            case .x86:
                (idt, pool, prototypes) = (0xa000_0000, 0xb001_0000, 0xe100_0000)
                (userImage, peb, processorRegion) = (0x7712_0000, 0x7ffd_0000, 0xffdf_f000)
            }
            sharedData = architecture.layout.sharedUserData.rawValue
        }
    }

    /// The most RAM that a shape takes, in bytes; several shapes can share it, one after the other.
    public static let memorySize = 16 << 20

    public init(_ shape: KernelShape, ram: SyntheticRAM) {
        self.shape = shape
        self.ram = ram
        places = Places(shape.architecture)
        tables = PageTableBuilder(ram: ram, mode: shape.mode)
        var code = ShapedCode(shape)
        image = code.assemble()
        symbols = code.symbols
        mapImage()
        mapTables()
        if shape.hasIsolation { shadowRoot = makeShadow().root }
        layOutDecoys()
        mapProcesses()
        layOutTrouble()
    }

    public convenience init(_ shape: KernelShape) { self.init(shape, ram: SyntheticRAM(size: Self.memorySize)) }

    public var base: UInt64 { shape.base }
    public func address(_ symbol: String) -> UInt64 { base + UInt64(symbols[symbol]!) }
    public func guestAddress(_ symbol: String) -> GuestVirtualAddress { GuestVirtualAddress(address(symbol)) }

    /// Writes an integer as wide as a pointer through the System process's tables.
    public func writeWord(_ value: UInt64, at address: UInt64) { write(value, at: address, in: tables) }

    func write(_ value: UInt64, at address: UInt64, in tables: PageTableBuilder) {
        if wordSize == 8 {
            tables.write(value, at: address)
        } else {
            tables.write(UInt32(truncatingIfNeeded: value), at: address)
        }
    }

    public func setEntry(of address: UInt64, to entry: UInt64) {
        tables.setEntry(at: tables.entryAddress(of: address), to: entry)
    }

    private func mapImage() {
        let parts = image.parts()
        if shape.usesLargePages {
            let unit: UInt64 = tables.entryWidth == 4 ? 0x40_0000 : 0x20_0000
            let count = (UInt64(image.size) + unit - 1) / unit
            let physical = ram.allocate(pages: Int(count * unit / 4096), alignment: unit)
            for index in 0..<count {
                tables.map(base + index * unit, to: physical + index * unit, [.present, .writable], level: 2)
            }
        } else {
            // Only what is in use: a large alignment leaves most of an image empty.
            var pages: Set<UInt32> = [0]
            let used = parts.map { ($0.rva, UInt32($0.bytes.count)) } + image.sections.map { ($0.rva, $0.virtualSize) }
            for (rva, count) in used where count > 0 && rva < image.size && count <= image.size - rva {
                pages.formUnion((rva / 4096)...((rva + count - 1) / 4096))
            }
            for page in pages.sorted() { tables.mapNew(base + UInt64(page) * 4096, [.present, .writable]) }
        }
        for part in parts where part.rva < image.size { tables.write(part.bytes, at: base + UInt64(part.rva)) }
    }

    private func mapTables() {
        tables.mapNew(places.idt, .kernelData)
        tables.mapNew(places.processorRegion, .kernelData)
        tables.mapNew(places.sharedData, .kernelData)
        let prefix = shape.hasIsolation ? "KiTrapShadow" : "KiTrap"
        for vector in 0..<32 {
            // Programs may execute INT3 and INTO.
            setGate(vector, address("\(prefix)\(vector)"), isOpen: vector == 3 || vector == 4)
        }
        if shape.architecture == .x86 {
            setGate(0x2e, address(shape.hasIsolation ? "KiSystemServiceShadow" : "KiSystemService"), isOpen: true)
        }
    }

    func setGate(_ vector: Int, _ handler: UInt64, isOpen: Bool) {
        let attributes: UInt64 = isOpen ? 0xee00 : 0x8e00
        let low =
            handler & 0xffff | (wordSize == 8 ? 0x10 : 0x08) << 16 | attributes << 32 | (handler >> 16 & 0xffff) << 48
        let gate = places.idt + UInt64(vector) * 2 * wordSize
        tables.write(low, at: gate)
        if wordSize == 8 { tables.write(handler >> 32, at: gate + 8) }
    }

    private func mapProcesses() {
        let offsets = shape.offsets
        let links = UInt64(offsets.uniqueProcessID) + wordSize
        let names = [("System", false)] + shape.processes
        tables.mapNew(places.pool, pages: names.count + 1, .kernelData)
        let ntdll = ShapedUserImage(shape, base: places.userImage)
        let pages = ram.allocate(pages: ntdll.pages)
        ram.store(ntdll.bytes, at: pages)
        for (index, (name, hasModules)) in names.enumerated() {
            let own = index == 0 ? tables : PageTableBuilder(ram: ram, mode: shape.mode)
            let object = places.pool + 0x40 + UInt64(index) * 0x1000
            let peb = index == 0 ? 0 : places.peb
            processes.append(Process(object: object, id: 4 + UInt64(index) * 0x100, name: name, tables: own, peb: peb))
            writeWord(own.root, at: object + shape.architecture.layout.directoryTableBase)
            writeWord(processes[index].id, at: object + UInt64(offsets.uniqueProcessID))
            writeWord(peb, at: object + UInt64(offsets.peb))
            tables.write(Array(name.utf8), at: object + UInt64(offsets.imageFileName))
            guard index > 0 else { continue }
            for page in 0..<UInt64(ntdll.pages) where hasModules {
                own.map(places.userImage + page * 4096, to: pages + page * 4096, .userCode)
            }
            ShapedUserImage.layOutLoaderData(of: self, in: own, ntdll: hasModules ? places.userImage : nil)
        }
        let nodes = [address("PsActiveProcessHead")] + processes.map { $0.object + links }
        for (index, node) in nodes.enumerated() {
            let next = nodes[(index + 1) % nodes.count]
            writeWord(next, at: node)
            writeWord(node, at: next + wordSize)
        }
        writeWord(processes[0].object, at: address("PsInitialSystemProcess"))
        let thread = self.thread
        writeWord(thread, at: places.processorRegion + UInt64(offsets.currentThread))
        writeWord(processes[1].object, at: thread + UInt64(offsets.threadProcess))
        writeWord(processes[0].object, at: thread + UInt64(offsets.attachedProcess))
        writeWord(0x1234, at: thread + UInt64(offsets.threadID))
        tables.write(UInt8(1), at: thread + UInt64(offsets.previousMode))
        for process in processes.dropFirst() { shareKernelHalf(with: process.tables) }
    }

    /// A thread of the second process, that the processor runs.
    public var thread: UInt64 { places.pool + 0x40 + UInt64(processes.count) * 0x1000 }
    public var processorRegion: UInt64 { places.processorRegion }

    /// The kernel's half is the same in all address spaces.
    func shareKernelHalf(with other: PageTableBuilder) {
        let indices: Range<UInt64> =
            switch shape.mode {
            case .pae: 2..<4
            case .none, .legacy32: 512..<1024
            case .fourLevel, .fiveLevel: 256..<512
            }
        let width = tables.entryWidth
        for index in indices {
            other.setEntry(at: other.root + index * width, to: tables.entry(at: tables.root + index * width))
        }
    }

    /// What a vCPU says whose page tables are at `root`.
    public func processorTables(root: UInt64) -> ProcessorTables {
        // NXE, and in long mode LMA, LME and SCE.
        var control = ControlRegisters(cr0: 0x8005_0033, cr3: root, cr4: 0x0035_06d8, efer: 0x800)
        switch shape.mode {
        case .none: control.cr0 = 0x11
        case .legacy32(let largePages): control.cr4 = largePages ? 0x6d0 : 0x6c0
        case .pae: control.cr4 = 0x6f8
        case .fourLevel: (control.cr4, control.efer) = (0x35_06f8, 0xd01)
        case .fiveLevel: (control.cr4, control.efer) = (0x35_16f8, 0xd01)
        }
        return ProcessorTables(
            control: control, idtBase: GuestVirtualAddress(places.idt), idtLimit: wordSize == 8 ? 0xfff : 0x7ff,
            gdtBase: GuestVirtualAddress(0), gdtLimit: 0x57)
    }

    /// What the shape's vCPUs say.
    public var processorTables: [ProcessorTables] {
        switch shape.viewpoint {
        case .system: [processorTables(root: tables.root)]
        case .otherProcess: [processorTables(root: processes[1].tables.root)]
        case .shadow: [processorTables(root: shadowRoot)]
        case .shadowAndKernel: [processorTables(root: shadowRoot), processorTables(root: tables.root)]
        }
    }

    /// The address space of a program under page-table isolation: the interrupt table, and the code it leads to.
    private func makeShadow() -> PageTableBuilder {
        let shadow = PageTableBuilder(ram: ram, mode: shape.mode)
        let code = address("KiTrapShadow0") & ~0xfff
        for page in [places.idt, code] {
            let physical = try! tables.memory.translate(GuestVirtualAddress(page)).physical.rawValue
            shadow.map(page, to: physical & ~0xfff, .kernelCode)
        }
        return shadow
    }

    /// Where discovery has to find the power function.
    public var powerFunction: GuestVirtualAddress {
        guestAddress(shape.decoys.contains(.patternElsewhere) ? "PopSimilar" : "NtSetSystemPowerState")
    }

    /// What the user supplies.
    public var patterns: [FunctionPatterns] {
        guard !shape.decoys.isDisjoint(with: [.pattern, .doublePattern, .patternElsewhere]) else { return [] }
        let row = shape.mark.map { "0x" + String($0, radix: 16) }.joined(separator: ", ")
        let lines = [
            "--- !intro_update_win_function", "name: NtSetSystemPowerState",
            "guest64: \(shape.architecture == .x64 ? "True" : "False")", "patterns:",
            "  - !intro_update_win_pattern", "    section_hint: PAGELK", "    min_ver: \(shape.build)",
            "    max_ver: \(shape.build)", "    pattern: !code_pattern", "      code:", "        - [\(row)]",
        ]
        return [try! FunctionPatterns(yaml: lines.joined(separator: "\n"), source: "test")]
    }
}
