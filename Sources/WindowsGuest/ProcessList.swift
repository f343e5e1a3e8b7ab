import GuestMemory

/// A process of the guest, as its object says.
public struct GuestProcess: Hashable, Sendable {
    /// The EPROCESS.
    public var object: GuestVirtualAddress
    public var id: UInt64
    /// At most 15 bytes of its image's name.
    public var imageName: String
    /// KPROCESS.DirectoryTableBase; under page-table isolation the kernel's one.
    public var cr3: UInt64
    /// nil for processes without user-mode memory, such as System.
    public var peb: GuestVirtualAddress?
}

/// The processes and threads of a guest, read from the kernel's lists.
public struct ProcessList {
    /// A list longer than this is taken for garbage.
    public static let maximumProcesses = 1 << 14

    /// Walks of the list before its state is taken for what it is.
    static let attempts = 3

    let kernel: WindowsKernel
    let offsets: KernelOffsets

    public init(of kernel: WindowsKernel, offsets: KernelOffsets) {
        self.kernel = kernel
        self.offsets = offsets
    }

    /// All processes, from the System process on, in the order they were created.
    ///
    /// The list of a running guest changes while it is read, so a walk that stops making sense is repeated.
    /// - Throws: `malformed` where none of the walks makes sense; `notYet` where a page is not resident.
    public func processes() throws(DiscoveryError) -> [GuestProcess] {
        for _ in 1..<Self.attempts {
            if let found = try? walk() { return found }
        }
        return try walk()
    }

    private func walk() throws(DiscoveryError) -> [GuestProcess] {
        var found: [GuestProcess] = []
        var seen: Set<GuestVirtualAddress> = []
        let first = kernel.initialSystemProcess + offsets.activeProcessLinks
        var links = first
        var headSeen = false
        repeat {
            guard seen.insert(links).inserted else {
                throw .malformed("the list of processes runs in a circle past its start", at: links)
            }
            guard found.count < Self.maximumProcesses else {
                throw .malformed("the list of processes does not end", at: links)
            }
            let object = links - offsets.activeProcessLinks
            // The list's head, PsActiveProcessHead, is no process; it lies among the kernel's data.
            if !headSeen, kernel.image.contains(links), !isProcess(object) {
                headSeen = true
            } else if let process = try processOnList(at: object) {
                found.append(process)
            }
            let current = links
            links = try reading("the list of processes at \(current)") { () throws(MemoryError) in
                try kernel.memory.pointer(at: current)
            }
            guard kernel.isKernelPointer(links) else {
                throw .malformed("the list of processes leads to \(links)", at: current)
            }
        } while links != first
        return found
    }

    /// The process at an object's address.
    /// - Throws: `malformed` where the object is no process.
    public func process(at object: GuestVirtualAddress) throws(DiscoveryError) -> GuestProcess {
        let (cr3, id, peb, name) = try reading("the process at \(object)") { () throws(MemoryError) in
            (
                try kernel.memory.word(at: object + offsets.directoryTableBase),
                try kernel.memory.word(at: object + offsets.uniqueProcessID),
                try kernel.memory.word(at: object + offsets.peb),
                try kernel.memory.bytes(at: object + offsets.imageFileName, count: 15)
            )
        }
        guard isPlausible(cr3: cr3, id: id) else {
            throw .malformed("it is no process", at: object)
        }
        let text = name.prefix { $0 != 0 }.map { (0x20..<0x7f).contains($0) ? $0 : UInt8(ascii: "?") }
        let userPEB = peb != 0 && peb < kernel.architecture.layout.userEnd ? GuestVirtualAddress(peb) : nil
        return GuestProcess(
            object: object, id: id, imageName: String(decoding: text, as: UTF8.self), cr3: cr3, peb: userPEB)
    }

    /// The process at an entry of the list; nil for one that is being created or taken down, which has an
    /// identifier and no page tables.
    private func processOnList(at object: GuestVirtualAddress) throws(DiscoveryError) -> GuestProcess? {
        if isProcess(object) { return try process(at: object) }
        let id = try reading("the process at \(object)") { () throws(MemoryError) in
            try kernel.memory.word(at: object + offsets.uniqueProcessID)
        }
        guard isPlausible(id: id) else { throw .malformed("it is no process", at: object) }
        return nil
    }

    /// The process that a thread belongs to.
    public func process(ofThread thread: GuestVirtualAddress) throws(DiscoveryError) -> GuestProcess {
        try process(at: try pointer(at: thread + offsets.threadProcess, of: thread))
    }

    /// The process that a thread makes a call for: the one that it belongs to.
    public func callerProcess(ofThread thread: GuestVirtualAddress) throws(DiscoveryError) -> GuestProcess {
        try process(ofThread: thread)
    }

    /// The process whose address space a thread is in.
    public func attachedProcess(ofThread thread: GuestVirtualAddress) throws(DiscoveryError) -> GuestProcess {
        try process(at: try pointer(at: thread + offsets.attachedProcess, of: thread))
    }

    /// A thread's identifier.
    public func threadID(of thread: GuestVirtualAddress) throws(DiscoveryError) -> UInt64 {
        try pointer(at: thread + offsets.threadID, of: thread).rawValue
    }

    /// The mode that a thread's current system call came from.
    /// - Throws: `malformed` for a value that is neither.
    public func previousMode(ofThread thread: GuestVirtualAddress) throws(DiscoveryError) -> PreviousMode {
        let value = try reading("the thread at \(thread)") { () throws(MemoryError) in
            try kernel.memory.load(UInt8.self, at: thread + offsets.previousMode)
        }
        guard let mode = PreviousMode(rawValue: value) else {
            throw .malformed("PreviousMode is \(value)", at: thread)
        }
        return mode
    }

    /// The thread that a vCPU runs in the kernel.
    /// - Parameter processorRegion: where the vCPU's control region (KPCR) is: its GS base while it is in the kernel,
    ///   with 32 bits its FS base (`Registers.processorRegion`).
    public func currentThread(processorRegion: UInt64) throws(DiscoveryError) -> GuestVirtualAddress {
        let field = GuestVirtualAddress(processorRegion) + offsets.currentThread
        return try reading("the current thread at \(field)") { () throws(MemoryError) in
            try kernel.memory.pointer(at: field)
        }
    }

    private func pointer(
        at field: GuestVirtualAddress, of thread: GuestVirtualAddress
    ) throws(DiscoveryError) -> GuestVirtualAddress {
        try reading("the thread at \(thread)") { () throws(MemoryError) in try kernel.memory.pointer(at: field) }
    }

    private func isProcess(_ object: GuestVirtualAddress) -> Bool {
        guard let cr3 = try? kernel.memory.word(at: object + offsets.directoryTableBase),
            let id = try? kernel.memory.word(at: object + offsets.uniqueProcessID)
        else { return false }
        return isPlausible(cr3: cr3, id: id)
    }

    /// Identifiers are multiples of four, of 32 bits.
    private func isPlausible(id: UInt64) -> Bool { id & 3 == 0 && id < 1 << 32 }

    /// Such an identifier, and page tables that map the kernel as the System process's do.
    private func isPlausible(cr3: UInt64, id: UInt64) -> Bool {
        guard cr3 != 0, isPlausible(id: id) else { return false }
        let memory = kernel.memory.inProcess(directoryTableBase: cr3)
        guard let here = try? memory.translate(kernel.base), let there = try? kernel.memory.translate(kernel.base)
        else { return false }
        return here.physical == there.physical
    }
}

/// KPROCESSOR_MODE: where a system call came from.
public enum PreviousMode: UInt8, Hashable, Sendable {
    case kernel = 0
    case user = 1
}
