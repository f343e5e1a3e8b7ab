import GuestMemory
import X86

/// The processor architecture that a kernel is built for.
public enum KernelArchitecture: String, Hashable, Sendable {
    case x64
    /// 32-bit, with and without PAE.
    case x86

    /// The architecture of the kernel that translates addresses this way.
    public init(_ mode: PagingMode) { self = mode.pointerSize == 8 ? .x64 : .x86 }

    /// In bytes.
    public var pointerSize: UInt64 { self == .x64 ? 8 : 4 }

    /// How the processor reads its code.
    public var decodingMode: DecodingMode { self == .x64 ? .long64 : .protected32 }
}

/// What tells one kernel (and one boot of it) from another.
public struct KernelIdentity: Hashable, Sendable {
    /// NtBuildNumber without its free-or-checked mark.
    public var build: UInt32
    public var architecture: KernelArchitecture
    /// Differs from boot to boot.
    public var base: GuestVirtualAddress
    /// The image's TimeDateStamp and SizeOfImage: together they name one exact build of the file.
    public var timeDateStamp: UInt32
    public var imageSize: UInt32

    public init(
        build: UInt32, architecture: KernelArchitecture, base: GuestVirtualAddress, timeDateStamp: UInt32,
        imageSize: UInt32
    ) {
        self.build = build
        self.architecture = architecture
        self.base = base
        self.timeDateStamp = timeDateStamp
        self.imageSize = imageSize
    }

    /// The same file, wherever it was loaded.
    public func isSameFile(as other: Self) -> Bool {
        build == other.build && architecture == other.architecture && timeDateStamp == other.timeDateStamp
            && imageSize == other.imageSize
    }
}

/// A Windows kernel in a running guest.
public struct WindowsKernel {
    public let image: PEImage
    public let exports: ExportTable
    /// NtBuildNumber without its free-or-checked mark: 7601, 19041, …
    public let build: UInt32
    /// The System process's page tables, which map the whole kernel.
    public let systemCR3: UInt64
    /// The kernel's half of the address space, seen through `systemCR3`.
    public let memory: KernelMemory
    /// The System process's object.
    public let initialSystemProcess: GuestVirtualAddress

    public var base: GuestVirtualAddress { image.base }
    public var architecture: KernelArchitecture { KernelArchitecture(memory.pagingMode) }

    public var identity: KernelIdentity {
        KernelIdentity(
            build: build, architecture: architecture, base: base, timeDateStamp: image.timeDateStamp,
            imageSize: image.size)
    }

    /// Completes what the locator found: version, System process, its page tables.
    /// - Throws: `stillBooting` while the System process does not exist; `malformed` where its page tables do
    ///   not map the kernel.
    init(image: PEImage, exports: ExportTable, seenFrom memory: KernelMemory) throws(DiscoveryError) {
        let buildAddress = try exports.address(of: "NtBuildNumber")
        let number = try reading("NtBuildNumber") { () throws(MemoryError) in
            try memory.load(UInt32.self, at: buildAddress)
        }
        build = number & 0x0fff_ffff
        guard build >= 2600, build <= 0xffff else {
            throw build == 0
                ? .stillBooting("the kernel has no build number yet")
                : .malformed("\(build) is no build number", at: buildAddress)
        }

        let pointer = try exports.address(of: "PsInitialSystemProcess")
        let system = try reading("PsInitialSystemProcess") { () throws(MemoryError) in
            try memory.pointer(at: pointer)
        }
        guard system.rawValue != 0 else { throw .stillBooting("there is no System process yet") }
        guard memory.pagingMode.isInKernelHalf(system), memory.pagingMode.isCanonical(system) else {
            throw .malformed("PsInitialSystemProcess is \(system)", at: pointer)
        }
        let root = try reading("the System process at \(system)") { () throws(MemoryError) in
            try memory.word(at: system + image.architecture.layout.directoryTableBase)
        }
        guard root != 0 else { throw .stillBooting("the System process has no page tables yet") }

        // The tables are the System process's only if they map the kernel where it was seen.
        let systemMemory = memory.inProcess(directoryTableBase: root)
        let here = try reading("the kernel's header") { () throws(MemoryError) in
            try memory.translate(image.base).physical
        }
        guard let there = try? systemMemory.translate(image.base).physical, here == there else {
            throw .malformed(
                "the System process's page tables (0x\(String(root, radix: 16))) do not map the kernel", at: system)
        }

        self.image = image
        self.exports = exports
        systemCR3 = root
        self.memory = systemMemory
        initialSystemProcess = system
    }

    /// The same boot of the same kernel, in one guest's memory.
    func isSame(as other: Self) -> Bool {
        let mode = memory.pagingMode
        return base == other.base && initialSystemProcess == other.initialSystemProcess
            && mode.rootAddress(systemCR3) == other.memory.pagingMode.rootAddress(other.systemCR3)
    }

    /// Whether a value can be a pointer to a structure of the kernel's: in its half, translatable, aligned.
    func isKernelPointer(_ value: GuestVirtualAddress) -> Bool {
        memory.pagingMode.isInKernelHalf(value) && memory.pagingMode.isCanonical(value)
            && value.rawValue & (architecture.pointerSize - 1) == 0
    }

    /// The address of an exported name.
    /// - Throws: `missingExport`, or `notYet` where the name's page is not resident.
    public func export(_ name: String) throws(DiscoveryError) -> GuestVirtualAddress {
        try exports.address(of: name)
    }

    /// Whether an exported name leads to this address.
    func isExported(_ address: GuestVirtualAddress) -> Bool {
        exports.exports.values.contains { !$0.isForwarded && base + UInt64($0.rva) == address }
    }

    /// An executable section's bytes, as far as they are resident.
    func code(of section: PEImage.Section) throws(DiscoveryError) -> PartialBytes {
        let start = image.address(rva: section.rva)
        return try reading("section \(section.name)") { () throws(MemoryError) in
            try memory.readPartial(at: start, count: UInt64(section.virtualSize), maximum: 64 << 20)
        }
    }
}
