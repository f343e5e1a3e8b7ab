import GuestMemory
import HypervisorInterface
import X86

/// Finds a Windows kernel from what a vCPU's system registers say.
///
/// The handlers of a few exceptions lie in the kernel's image. From there a search goes back page by page
/// for a PE header whose image holds the handlers and calls itself by one of the kernel's names. It goes on to the
/// end even so: two such images would be ambiguous.
public struct KernelLocator {
    /// How far back from a handler an image's start is looked for, in bytes. Kernels of current Windows 11
    /// builds are under 20 MiB; with sections aligned to 2 MiB they would be three times as long.
    public static let maximumDistance = UInt64(PEImage.maximumSize)

    /// What kernels call themselves: for one processor or several, without and with PAE (Microsoft, "Boot Parameters
    /// to Load the Kernel and HAL").
    static let moduleNames: Set = ["ntoskrnl.exe", "ntkrnlmp.exe", "ntkrnlpa.exe", "ntkrpamp.exe"]

    /// #DE, #DB, #BP, #UD, #GP, #PF: handled by the kernel itself in every Windows.
    static let vectors: [UInt8] = [14, 3, 0, 13, 6, 1]

    let physical: PhysicalMemory

    public init(physical: PhysicalMemory) { self.physical = physical }

    /// The kernel that one of several vCPUs leads to; the most telling error where none does.
    ///
    /// Tables that no vCPU told (`ProcessorTables.isInferred`) count only where none that was told leads to a
    /// kernel, and then all that lead to one have to lead to the same.
    /// - Throws: `ambiguous` where they do not.
    public func locate(among tables: [ProcessorTables]) throws(DiscoveryError) -> WindowsKernel {
        var errors: [DiscoveryError] = []
        for entry in tables where !entry.isInferred {
            do throws(DiscoveryError) {
                return try locate(entry)
            } catch {
                errors.append(error)
            }
        }
        var found: [WindowsKernel] = []
        for entry in tables where entry.isInferred {
            do throws(DiscoveryError) {
                let kernel = try locate(entry)
                if !found.contains(where: { $0.isSame(as: kernel) }) { found.append(kernel) }
            } catch {
                errors.append(error)
            }
        }
        if found.count > 1 {
            let roots = found.map { GuestPhysicalAddress($0.systemCR3).page.description }.joined(separator: ", ")
            throw .ambiguous(
                "which of several kernels in memory runs (one may be left from an earlier boot, or belong to a guest "
                    + "of the guest; their page tables are at \(roots))",
                candidates: found.map(\.base))
        }
        if let kernel = found.first { return kernel }
        // A vCPU that has not been started, or stands in user mode, says less than one in a kernel.
        let worth: (DiscoveryError) -> Int = { error in
            switch error {
            case .pagingOff: 0
            case .notLongMode: 1
            case .stillBooting: 2
            case .notVisible: 3
            case .ambiguous: 5
            default: 4
            }
        }
        throw errors.max { worth($0) < worth($1) } ?? .noKernel("no vCPU is known, and memory shows no tables of one")
    }

    /// The kernel that a vCPU's system registers lead to.
    /// - Throws: `pagingOff`, `notLongMode`, `stillBooting` before there is a kernel; `notVisible` where the
    ///   address space hides it; `noKernel` where what is there is no Windows; `ambiguous` where several images
    ///   could be the kernel.
    public func locate(_ tables: ProcessorTables) throws(DiscoveryError) -> WindowsKernel {
        guard tables.control.pagingEnabled else { throw .pagingOff }
        let memory = KernelMemory(VirtualMemory(physical: physical, space: AddressSpace(tables.control)))
        // The tables are of a width that the processor is not in: it is on its way from one to the other.
        guard memory.pagingMode.isCanonical(tables.idtBase) else { throw .notLongMode }
        let handlers = try handlers(tables, in: memory)

        var hidden: GuestVirtualAddress?
        var rejected: DiscoveryError?
        for handler in handlers {
            switch try image(before: handler, handlers: handlers, in: memory) {
            case .found(let kernel): return kernel
            case .hidden(let address): hidden = hidden ?? address
            case .rejected(let error): rejected = rejected ?? error
            case .none: break
            }
        }
        if let rejected { throw rejected }
        if let hidden, try isWindows(tables, in: memory) { throw .notVisible(hidden) }
        throw .noKernel("no image holds the interrupt handlers, \(handlers[0]) among them")
    }

    /// The handlers of the vectors that the kernel always handles, checked to be the kernel's own.
    private func handlers(
        _ tables: ProcessorTables, in memory: KernelMemory
    ) throws(DiscoveryError) -> [GuestVirtualAddress] {
        var handlers: [GuestVirtualAddress] = []
        for vector in Self.vectors {
            let gate = try reading("the interrupt table at \(tables.idtBase)") { () throws(MemoryError) in
                try InterruptGate.read(
                    vector: vector, idtBase: tables.idtBase, idtLimit: tables.idtLimit, in: memory)
            }
            if let gate { handlers.append(gate.handler) }
        }
        guard handlers.count >= 2 else {
            throw .stillBooting("the interrupt table at \(tables.idtBase) has no usable gates")
        }
        if handlers.contains(where: { !memory.pagingMode.isInKernelHalf($0) }) {
            throw .stillBooting("interrupts are handled below the kernel's addresses, by firmware or a boot loader")
        }
        if let foreign = handlers.first(where: { !memory.pagingMode.isCanonical($0) }) {
            throw .malformed("an interrupt gate leads to \(foreign)", at: tables.idtBase)
        }
        guard memory.pagingMode.pointerSize == 8 else { return handlers }
        // Linux maps its text at -2 GiB to -1 GiB (kernel documentation, x86_64/mm); Windows never does.
        let linuxText: Range<UInt64> = 0xffff_ffff_8000_0000..<0xffff_ffff_c000_0000
        if let linux = handlers.first(where: { linuxText.contains($0.rawValue) }) {
            throw .noKernel("the interrupt handler at \(linux) is where Linux has its kernel")
        }
        return handlers
    }

    /// Whether the interrupt table is Windows', as far as it says: programs of 32-bit Windows can make system calls
    /// by INT 2Eh in every version, those of other systems cannot.
    private func isWindows(_ tables: ProcessorTables, in memory: KernelMemory) throws(DiscoveryError) -> Bool {
        guard memory.pagingMode.pointerSize == 4 else { return true }
        let gate = try reading("the interrupt table at \(tables.idtBase)") { () throws(MemoryError) in
            try InterruptGate.read(vector: 0x2e, idtBase: tables.idtBase, idtLimit: tables.idtLimit, in: memory)
        }
        return gate?.privilegeLevel == 3
    }

    private enum Search {
        case found(WindowsKernel)
        /// Pages before the handler are absent, and no image's header is among the others.
        case hidden(GuestVirtualAddress)
        /// An image holds the handlers, but it is not the kernel, or not readable now.
        case rejected(DiscoveryError)
        case none
    }

    private func image(
        before handler: GuestVirtualAddress, handlers: [GuestVirtualAddress], in memory: KernelMemory
    ) throws(DiscoveryError) -> Search {
        var page = handler.page
        let lowest = handler.page.rawValue &- Self.maximumDistance
        var hidden = false
        var rejected: DiscoveryError?
        var found: [WindowsKernel] = []
        let mode = memory.pagingMode
        while page.rawValue &- lowest <= Self.maximumDistance, mode.isInKernelHalf(page) {
            do throws(MemoryError) {
                if try isImage(at: page, in: memory) {
                    switch candidate(at: page, holding: handler, handlers: handlers, in: memory) {
                    case .found(let kernel): found.append(kernel)
                    case .rejected(let error):
                        // What may come with time tells more than what another image is.
                        if rejected == nil || error.canBeRetried && rejected?.canBeRetried == false { rejected = error }
                    case .hidden, .none: break
                    }
                }
                page = page - 4096
            } catch .notPresent(_, _, let level) {
                // A whole table's worth is absent: go on before it.
                hidden = true
                let span = mode.span(ofLevel: level)
                page = GuestVirtualAddress((page.rawValue & ~(span - 1)) &- 4096)
            } catch {
                // Garbage in a page table hides the page, too.
                hidden = true
                page = page - 4096
            }
        }
        if found.count > 1 { throw .ambiguous("which image is the kernel", candidates: found.map(\.base)) }
        if let kernel = found.first { return .found(kernel) }
        if let rejected { return .rejected(rejected) }
        return hidden ? .hidden(handler) : .none
    }

    /// Whether a page starts with "MZ", and has "PE" where that says: text and data can have the one, but not both.
    private func isImage(at page: GuestVirtualAddress, in memory: KernelMemory) throws(MemoryError) -> Bool {
        guard try memory.load(UInt16.self, at: page) == 0x5a4d else { return false }
        let header = UInt64(try memory.load(UInt32.self, at: page + 0x3c))
        guard header <= PEImage.maximumHeaderOffset else { return false }
        return try memory.load(UInt32.self, at: page + header) == 0x4550
    }

    /// Judges a page that starts like an image.
    private func candidate(
        at page: GuestVirtualAddress, holding handler: GuestVirtualAddress,
        handlers: [GuestVirtualAddress], in memory: KernelMemory
    ) -> Search {
        do throws(DiscoveryError) {
            let image = try PEImage(at: page, in: memory)
            guard image.contains(handler), image.architecture == KernelArchitecture(memory.pagingMode) else {
                return .none
            }
            // A debugger or a security product may have taken a vector, not most of them.
            guard handlers.count(where: { image.contains($0) }) * 2 > handlers.count else { return .none }
            let exports = try ExportTable(of: image, in: memory)
            guard Self.moduleNames.contains(exports.moduleName.lowercased()) else {
                let name = printable(exports.moduleName)
                return .rejected(.noKernel("the image at \(page) calls itself \"\(name)\""))
            }
            return .found(try WindowsKernel(image: image, exports: exports, seenFrom: memory))
        } catch {
            return .rejected(error)
        }
    }
}
