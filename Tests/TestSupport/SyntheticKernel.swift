import GuestMemory

/// What a synthetic kernel is to be like.
public struct SyntheticKernelOptions: Sendable {
    public var base: UInt64 = 0xffff_f806_4a20_0000
    public var build: UInt32 = 19041
    /// The calls between NtSetSystemPowerState and its stub: 0 calls it directly; nil never does.
    public var reentryDepth: Int? = 1
    /// NtSetSystemPowerState ends with a jump to the stub instead of a call.
    public var reentryByTailJump = false
    /// Bytes of NtSetSystemPowerState's start, for patterns.
    public var powerFunctionPrologue: [UInt8] = [0x48, 0x89, 0x5c, 0x24, 0x08, 0x48, 0x83, 0xec, 0x20]
    /// A second copy of the prologue elsewhere in PAGELK.
    public var duplicatePrologue = false
    public var moduleName = "ntoskrnl.exe"
    /// Exports left out.
    public var withoutExports: Set<String> = []
    /// Accessors as an unoptimising compiler makes them.
    public var unoptimisedAccessors = false
    /// KiServiceInternal ends in a jump that cannot be followed.
    public var opaqueDispatcher = false
    public var serviceCount: UInt32 = 0x1d8
    /// Emits KeBugCheckEx and, for an export of its own, KeBugCheck, with whatever they call.
    public var bugChecks: (@Sendable (inout CodeBuilder) -> Void)?
    /// The guest's RAM, in bytes.
    public var memory = 4 << 20
    /// Where the RAM starts in the guest's physical address space.
    public var memoryBase: UInt64 = 0

    public init() {}
}

/// An NT kernel, three processes and their ntdll, laid out in synthetic RAM: enough of each for discovery.
///
/// Instruction shapes are those of Windows 10 x64, as its public symbols and disassemblies show them.
public final class SyntheticKernel {
    /// Offsets and numbers that the kernel is built with.
    public enum Layout {
        public static let currentThread: UInt32 = 0x188
        public static let previousMode: UInt32 = 0x232
        public static let attachedProcess: UInt32 = 0xb8
        public static let threadProcess: UInt32 = 0x220
        public static let threadID: UInt32 = 0x480
        public static let uniqueProcessID: UInt32 = 0x440
        public static let activeProcessLinks: UInt32 = 0x448
        public static let peb: UInt32 = 0x550
        public static let imageFileName: UInt32 = 0x5a8
        public static let powerNumber: UInt32 = 0x1ab
        public static let closeNumber: UInt32 = 0xf
        public static let queryNumber: UInt32 = 0x36
    }

    public struct Process {
        public var object: UInt64
        public var id: UInt64
        public var name: String
        public var tables: PageTableBuilder
        public var peb: UInt64
    }

    public let options: SyntheticKernelOptions
    public let ram: SyntheticRAM
    public let tables: PageTableBuilder
    public private(set) var symbols: [String: UInt32] = [:]
    public private(set) var image: SyntheticImage
    public private(set) var processes: [Process] = []
    public let idtBase: UInt64 = 0xffff_f806_4900_0000
    public let idtLimit: UInt32 = 0xfff
    public let ntdllBase: UInt64 = 0x7ffa_1230_0000
    /// A thread of the last process.
    public let thread: UInt64 = 0xffff_b800_0002_0080
    public let processorRegion: UInt64 = 0xffff_f806_4901_0000
    static let pool: UInt64 = 0xffff_b800_0001_0000

    public var base: UInt64 { options.base }
    public var cr3: UInt64 { tables.root }

    public func address(_ symbol: String) -> UInt64 { base + UInt64(symbols[symbol]!) }

    public init(_ options: SyntheticKernelOptions = .init()) {
        self.options = options
        ram = SyntheticRAM(size: options.memory, base: options.memoryBase)
        tables = PageTableBuilder(ram: ram)
        var code = KernelCode(options: options)
        (image, symbols) = code.assemble()
        mapImage()
        mapTables()
        mapProcesses()
    }

    /// Writes through the System process's tables.
    public func write(_ bytes: [UInt8], at address: UInt64) { tables.write(bytes, at: address) }
    public func write<Value: FixedWidthInteger & BitwiseCopyable>(_ value: Value, at address: UInt64) {
        tables.write(value, at: address)
    }

    /// Replaces the last-level entry of an address, in all processes (the kernel's tables are shared).
    public func setEntry(of address: UInt64, to entry: UInt64) {
        ram.store(entry, at: tables.entryAddress(of: address))
    }

    public func entry(of address: UInt64) -> UInt64 { ram.load(UInt64.self, at: tables.entryAddress(of: address)) }

    private func mapImage() {
        let bytes = image.bytes()
        for page in 0..<Int(image.size) / 4096 {
            let rva = UInt32(page) * 4096
            let section = image.sections.first { rva &- $0.rva < ($0.virtualSize + 4095) & ~4095 }
            let executable = section.map { $0.characteristics & 0x2000_0000 != 0 } ?? false
            tables.mapNew(base + UInt64(rva), executable ? .kernelCode : .kernelData)
        }
        tables.write(bytes, at: base)
    }

    private func mapTables() {
        tables.mapNew(idtBase, .kernelData)
        tables.mapNew(processorRegion, .kernelData)
        for vector in 0..<32 {
            let handler = address("KiTrap\(vector)")
            // Programs may execute INT3 and INTO.
            let attributes: UInt64 = vector == 3 || vector == 4 ? 0xee00 : 0x8e00
            let low = handler & 0xffff | 0x10 << 16 | attributes << 32 | (handler >> 16 & 0xffff) << 48
            tables.write(low, at: idtBase + UInt64(vector) * 16)
            tables.write(handler >> 32, at: idtBase + UInt64(vector) * 16 + 8)
        }
        tables.mapNew(0xffff_f780_0000_0000, .kernelData)
    }

    private func mapProcesses() {
        tables.mapNew(Self.pool, pages: 32, .kernelData)
        let ntdll = UserImage(base: ntdllBase)
        let ntdllPages = ram.allocate(pages: ntdll.pages)
        ram.store(ntdll.bytes, at: ntdllPages)

        let links = UInt64(Layout.activeProcessLinks)
        let names = ["System", "smss.exe", "csrss.exe"]
        for (index, name) in names.enumerated() {
            let object = Self.pool + 0x40 + UInt64(index) * 0x1000
            let own = index == 0 ? tables : PageTableBuilder(ram: ram)
            let peb: UInt64 = index == 0 ? 0 : 0x2e_4000_0000
            processes.append(
                Process(object: object, id: 4 + UInt64(index) * 0x100, name: name, tables: own, peb: peb))
            tables.write(own.root | (index == 0 ? 2 : 0), at: object + 0x28)
            tables.write(processes[index].id, at: object + UInt64(Layout.uniqueProcessID))
            tables.write(peb, at: object + UInt64(Layout.peb))
            tables.write(Array(name.utf8), at: object + UInt64(Layout.imageFileName))
        }
        // The list: head, System, smss, csrss, back to the head.
        let nodes = [address("PsActiveProcessHead")] + processes.map { $0.object + links }
        for (index, node) in nodes.enumerated() {
            let next = nodes[(index + 1) % nodes.count]
            tables.write(next, at: node)
            tables.write(node, at: next + 8)
        }
        tables.write(processes[0].object, at: address("PsInitialSystemProcess"))
        tables.write(thread, at: processorRegion + UInt64(Layout.currentThread))
        tables.write(processes[2].object, at: thread + UInt64(Layout.threadProcess))
        tables.write(processes[1].object, at: thread + UInt64(Layout.attachedProcess))
        tables.write(UInt64(0x1234), at: thread + UInt64(Layout.threadID))
        tables.write(UInt8(1), at: thread + UInt64(Layout.previousMode))

        // The kernel's half is the same in all address spaces.
        for process in processes.dropFirst() {
            for index in 256..<512 {
                let entry = ram.load(UInt64.self, at: tables.root + UInt64(index) * 8)
                ram.store(entry, at: process.tables.root + UInt64(index) * 8)
            }
            for page in 0..<UInt64(ntdll.pages) {
                process.tables.map(ntdllBase + page * 4096, to: ntdllPages + page * 4096, .userCode)
            }
            UserImage.layOutLoaderData(in: process.tables, peb: process.peb, ntdll: ntdllBase)
        }
    }

    /// An address of ntdll's image by its export's name.
    public func ntdllAddress(_ name: String) -> UInt64 { ntdllBase + UInt64(UserImage(base: ntdllBase).symbols[name]!) }
}

extension SyntheticKernel {
    /// How many names the image exports.
    public static var exportCount: Int { KernelCode.exported.count }
}
