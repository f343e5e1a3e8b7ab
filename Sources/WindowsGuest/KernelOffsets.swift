import GuestMemory

/// Where the kernel keeps what Vigil reads of threads and processes, derived from the kernel's own code.
///
/// No table of builds is needed: each value is what an exported accessor of this very kernel returns. All are
/// in bytes.
public struct KernelOffsets: Hashable, Sendable {
    /// KPCR.Prcb.CurrentThread, from GS; with 32 bits from FS.
    public var currentThread: UInt64
    /// KTHREAD.PreviousMode, one byte: 0 kernel, 1 user.
    public var previousMode: UInt64
    /// KTHREAD.ApcState.Process: the process whose address space the thread is in.
    public var attachedProcess: UInt64
    /// KTHREAD.Process: the process that the thread belongs to.
    public var threadProcess: UInt64
    /// ETHREAD.Cid.UniqueThread.
    public var threadID: UInt64
    /// EPROCESS.UniqueProcessId.
    public var uniqueProcessID: UInt64
    /// EPROCESS.ActiveProcessLinks: behind UniqueProcessId in every build, verified on the list.
    public var activeProcessLinks: UInt64
    /// EPROCESS.ImageFileName, 15 bytes and a zero.
    public var imageFileName: UInt64
    /// EPROCESS.Peb.
    public var peb: UInt64
    /// KPROCESS.DirectoryTableBase.
    public var directoryTableBase: UInt64

    /// No field that is looked for lies further into its object than this.
    static let maximum: Int64 = 0x2000

    /// Decodes the kernel's accessors.
    /// - Throws: `missingExport`, `notYet`, `unexpectedCode`, each with the accessor's name.
    public init(of kernel: WindowsKernel) throws(DiscoveryError) {
        let previousMode = try Self.decode("ExGetPreviousMode", of: kernel)
        guard case .processorRegion(let currentThread) = previousMode.root, previousMode.loads.count == 1,
            previousMode.displacement == 0
        else { throw try Self.unexpected("ExGetPreviousMode", of: kernel) }
        self.currentThread = try Self.checked(currentThread, "ExGetPreviousMode", of: kernel)
        self.previousMode = try Self.checked(previousMode.loads[0], "ExGetPreviousMode", of: kernel)

        let current = kernel.exports.contains("PsGetCurrentProcess") ? "PsGetCurrentProcess" : "IoGetCurrentProcess"
        let process = try Self.decode(current, of: kernel)
        guard process.root == previousMode.root, process.loads.count == 1, process.displacement == 0 else {
            throw try Self.unexpected(current, of: kernel)
        }
        attachedProcess = try Self.checked(process.loads[0], current, of: kernel)

        let owner = kernel.exports.contains("PsGetThreadProcess") ? "PsGetThreadProcess" : "IoThreadToProcess"
        threadProcess = try Self.field(owner, of: kernel)
        threadID = try Self.field("PsGetThreadId", of: kernel)
        uniqueProcessID = try Self.field("PsGetProcessId", of: kernel)
        peb = try Self.field("PsGetProcessPeb", of: kernel)
        let name = try Self.decode("PsGetProcessImageFileName", of: kernel)
        guard let part = name.argumentPart else {
            throw try Self.unexpected("PsGetProcessImageFileName", of: kernel)
        }
        imageFileName = try Self.checked(part, "PsGetProcessImageFileName", of: kernel)
        activeProcessLinks = uniqueProcessID + kernel.architecture.pointerSize
        directoryTableBase = kernel.architecture.layout.directoryTableBase
        try verifyLinks(of: kernel)
    }

    /// The System process must be on a list through the derived links: both neighbours point back at it.
    private func verifyLinks(of kernel: WindowsKernel) throws(DiscoveryError) {
        let links = kernel.initialSystemProcess + activeProcessLinks
        let memory = kernel.memory
        let pointerSize = kernel.architecture.pointerSize
        let (next, previous, id) = try reading("the System process's links at \(links)") { () throws(MemoryError) in
            (
                try memory.pointer(at: links), try memory.pointer(at: links + pointerSize),
                try memory.word(at: kernel.initialSystemProcess + uniqueProcessID)
            )
        }
        guard next.rawValue != 0, previous.rawValue != 0, id != 0 else {
            throw .stillBooting("the System process is not on the list of processes yet")
        }
        let (forward, backward) = try reading("the System process's neighbours") { () throws(MemoryError) in
            (try memory.pointer(at: next + pointerSize), try memory.pointer(at: previous))
        }
        guard forward == links, backward == links else {
            throw .malformed("the System process is on no list through its ActiveProcessLinks", at: links)
        }
        // The System process is process 4 in every Windows since XP.
        guard id == 4 else {
            throw .malformed("the System process calls itself process \(id)", at: kernel.initialSystemProcess)
        }
    }

    private static func decode(_ name: String, of kernel: WindowsKernel) throws(DiscoveryError) -> Accessor {
        try AccessorDecoder.decode(name, of: kernel)
    }

    private static func field(_ name: String, of kernel: WindowsKernel) throws(DiscoveryError) -> UInt64 {
        guard let offset = try decode(name, of: kernel).argumentField else { throw try unexpected(name, of: kernel) }
        return try checked(offset, name, of: kernel)
    }

    private static func checked(
        _ offset: Int64, _ name: String, of kernel: WindowsKernel
    ) throws(DiscoveryError) -> UInt64 {
        guard offset >= 0, offset < maximum else { throw try unexpected(name, of: kernel) }
        return UInt64(offset)
    }

    private static func unexpected(_ name: String, of kernel: WindowsKernel) throws(DiscoveryError) -> DiscoveryError {
        .unexpectedCode(function: name, at: try kernel.export(name), "it returns another kind of value")
    }
}
