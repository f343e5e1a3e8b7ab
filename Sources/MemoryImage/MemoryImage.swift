import Glibc
import GuestMemory
import HypervisorInterface

/// The memory of a machine as a file has it: an ELF core, or physical memory with nothing around it.
///
/// It can be looked at and nothing else: there is no vCPU to stop, and nothing ever changes.
public final class MemoryImage {
    public let identity: MachineIdentity
    public let memory: PhysicalMemory
    public let memoryAccess: String
    public var watchedDescriptors: [Int32] = []
    /// A descriptor; a byte that can be read there ends a search for tables. -1 for none.
    public var wakeDescriptor: Int32 = -1
    private let path: String
    /// Nil for a raw image.
    private let core: ELFCore?
    /// What a search of the whole memory found.
    private var inferred: [ProcessorTables]?

    /// Opens an image. Its memory is read when it is asked for.
    /// - Throws: `cannotOpen`, `unusableImage`.
    public init(path: String) throws(HypervisorError) {
        let file = try ImageFile.open(path)
        self.path = path
        let name = String(path.split(separator: "/").last ?? "")
        do throws(ImageError) {
            let start = try file.bytes(at: 0, count: min(file.size, ImageFormat.markLength), "its start")
            switch try ImageFormat(start: start) {
            case .elf:
                let core = try ELFCore(file)
                self.core = core
                memory = PhysicalMemory(file: file, regions: core.regions)
                memoryAccess = "ELF core, " + Self.words(for: core)
                identity = Self.identity(name, core.isByQEMU ? "ELF core by QEMU" : "ELF core")
            case .raw:
                core = nil
                memory = PhysicalMemory(
                    file: file,
                    regions: [RAMRegion(base: GuestPhysicalAddress(0), length: file.size, hostAddress: 0)])
                memoryAccess = "raw image, without registers: page tables were searched for"
                identity = Self.identity(name, "raw memory image")
            }
        } catch {
            throw .unusableImage(path: path, reason: error.description)
        }
    }

    private static func identity(_ name: String, _ kind: String) -> MachineIdentity {
        MachineIdentity(name: name.isEmpty ? nil : name, uuid: nil, processID: nil, hypervisor: kind)
    }

    private static func words(for core: ELFCore) -> String {
        if core.notesAreDamaged { return "whose notes are damaged: page tables were searched for" }
        switch core.processors.count {
        case 0: return "without system registers: page tables were searched for"
        case 1: return "with the registers of 1 vCPU"
        case let count: return "with the registers of \(count) vCPUs"
        }
    }
}

extension MemoryImage: VirtualMachine {
    /// An image is no machine: its state is called so.
    public func runState() throws(HypervisorError) -> RunState { .other("image") }

    /// What the notes say; what memory shows, where they say nothing; and both where each vCPU was in a program, whose
    /// address space may hide the kernel.
    /// - Throws: `unusableImage` where memory cannot be searched.
    public func processorTables() throws(HypervisorError) -> [ProcessorTables] {
        guard let core, !core.processors.isEmpty else { return try inferredTables() }
        let told = core.processors.map { $0.tables(of: core.header.machine) }
        let paging = core.processors.filter(\.isPaging)
        // In its firmware a machine may have the kernel of an earlier boot in memory. It is not searched for.
        guard !paging.isEmpty, !paging.contains(where: \.isPrivileged) else { return told }
        // Of what memory shows, that which the vCPUs use: the same interrupt table in the same place.
        let places = told.compactMap(placeOfInterruptTable)
        return told
            + (try inferredTables()).filter { placeOfInterruptTable($0).map(places.contains) ?? false }
    }

    private func placeOfInterruptTable(_ tables: ProcessorTables) -> GuestPhysicalAddress? {
        let space = VirtualMemory(physical: memory, space: AddressSpace(tables.control))
        return tables.control.pagingEnabled ? try? space.translate(tables.idtBase).physical : nil
    }

    private func inferredTables() throws(HypervisorError) -> [ProcessorTables] {
        if let inferred { return inferred }
        do throws(TableSearchError) {
            let found = try TableSearch(memory, isCancelled: { [wakeDescriptor] in Self.canBeRead(wakeDescriptor) })
                .processorTables()
            inferred = found
            return found
        } catch .cancelled {
            throw .unsupported(TableSearchError.cancelled.description)
        } catch {
            throw .unusableImage(path: path, reason: error.description)
        }
    }

    private static func canBeRead(_ descriptor: Int32) -> Bool {
        guard descriptor >= 0 else { return false }
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        return poll(&entry, 1, 0) > 0
    }

    /// Nothing happens to an image. Descriptors of others are waited on.
    public func nextEvent(until deadline: Deadline) throws(HypervisorError) -> MachineEvent? {
        var entries = (watchedDescriptors + [wakeDescriptor]).map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
        while true {
            let left = (deadline - .now).components
            let milliseconds = max(0, min(left.seconds, 3600) * 1000 + left.attoseconds / 1_000_000_000_000_000)
            let count = poll(&entries, nfds_t(entries.count), Int32(milliseconds))
            if count > 0 {
                if wakeDescriptor >= 0, let last = entries.last, last.revents != 0 {
                    var byte: UInt8 = 0
                    _ = read(wakeDescriptor, &byte, 1)
                    return .interrupted
                }
                return entries.first { $0.revents != 0 }.map { .descriptorReady($0.fd) }
            }
            if ContinuousClock.now >= deadline { return nil }
        }
    }
}
