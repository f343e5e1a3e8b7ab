import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// The page-table filter: tells of every change of the entries that watched pages are translated by, whichever of the
/// kernel's instructions makes it, without a stop of the guest.
///
/// The instructions have to be known (`PageTableWriterSearch`). Writes by others than those are not seen.
public final class PageTableFilterAgent: AgentProgram {
    public let name = "pt-filter"
    public let image: AgentImage
    public let patchesCode = true
    public let interval = Duration.seconds(1)
    public let collectInterval = Duration.milliseconds(20)

    private let kernel: WindowsKernel
    private let layout: PageTableFilterLayout
    /// What writes page tables. Taken at the next deployment.
    public var writers: [PageTableWriter] = []

    /// The sequences of reports whose vCPUs stand at the report point, while those are being collected.
    public var standingReports: Set<UInt64> = []

    private var pages: Set<GuestVirtualAddress> = []
    private var immediate: Set<GuestVirtualAddress> = []
    /// By the numbers that reports have: what is watched now, and what was until the last update. A report made before
    /// is read after it.
    private var watched: [UInt32: WatchedTranslations.Entry] = [:]
    private var watchedBefore: [UInt32: WatchedTranslations.Entry] = [:]
    private var nextNumber: UInt32 = 0
    /// Of the entries that the caller's pages are translated by, and of those that the patched code is.
    private var wantedPlaces: Set<GuestPhysicalAddress> = []
    private var codePlaces: Set<GuestPhysicalAddress> = []
    private var table: PageTableWatchTable
    private var reader: PageTableReportReader?
    private var patches: PageTableFilterPatches?
    /// Where code has been replaced, as whoever would have to put it back knows it.
    private var replaced: Set<GuestPhysicalAddress> = []
    /// Where it lies, while it does.
    private var memory: AgentMemory?
    private var lost: UInt64 = 0

    /// - Throws: `malformedImage` where the agent's image is missing or not what is expected.
    public init(of kernel: WindowsKernel) throws(AgentError) {
        image = try .bundled("ptfilter")
        do throws(PageTableFilterError) {
            layout = try PageTableFilterLayout(image: image.bytes, data: image.data, size: image.size)
        } catch {
            throw .malformedImage("\(error)")
        }
        self.kernel = kernel
        table = PageTableWatchTable(layout)
    }

    /// Where changes of pages that are watched immediately stop by: a place for an execution breakpoint. RAX is the
    /// report's sequence there. nil while the agent is not in the guest.
    public var reportPoint: GuestVirtualAddress? {
        patches == nil ? nil : memory.map { $0.base + UInt64(layout.reportPoint) }
    }

    /// Whether an entry translates one of the watched pages.
    public func isWatching(_ entry: GuestPhysicalAddress) -> Bool { wantedPlaces.contains(entry) }

    /// Says which pages are watched from now on, instead of those before. The guest may run.
    /// - Parameters:
    ///   - pages: of the kernel's half.
    ///   - immediate: those of them whose changes go by the report point.
    public func watch(
        _ pages: Set<GuestVirtualAddress>, immediate: Set<GuestVirtualAddress> = []
    ) throws(AgentError) {
        self.pages = Set(pages.map(\.page))
        self.immediate = Set(immediate.map(\.page))
        if patches != nil { try updateWatches() }
    }

    // MARK: Deployment

    public func prepare(_ bytes: inout [UInt8], at base: GuestVirtualAddress) throws(AgentError) { forget() }

    public func attach(_ memory: AgentMemory) throws(AgentError) {
        guard let gate = image.gate else { throw .malformedImage("the page-table filter has no gate") }
        guard !writers.isEmpty else {
            throw .unsupported("no instruction of this kernel's is known to write page tables")
        }
        do {
            let tables = try memory.effects.machine.processorTables()
            let handler = try InterruptGateCheck.handler(of: PageTableWriter.vector, on: tables, in: kernel)
            let target = memory.base + UInt64(gate.lowerBound)
            let patches = try PageTableFilterPatches(
                gate: try GatePatch(handler: handler, target: target, in: kernel.memory), writers: writers,
                in: kernel.memory)
            var instructions = PageTableWriterTable(layout)
            for writer in writers { try make(try instructions.insert(writer), memory) }
            reader = PageTableReportReader(layout, at: memory.base)
            self.memory = memory
            guard try standing(in: patches, memory) == nil else {
                throw AgentError.unsupported("vector \(PageTableWriter.vector) is being handled")
            }
            let places = try patches.attachment(in: kernel.memory)
            // From the first byte on something may lead there.
            self.patches = patches
            for place in places {
                replaced.insert(place.physical)
                try memory.effects.replaceCode(place)
            }
            try updateWatches()
        } catch {
            let reason = Self.agentError(error)
            // Half of it may be there.
            try? detach()
            if patches == nil { forget() }
            throw reason
        }
    }

    public func detach() throws(AgentError) {
        guard let patches, let memory else { return }
        do {
            // Who stands before the jump would be in the old handler otherwise, which knows nothing of page tables. The
            // jump is one instruction.
            for _ in 0..<memory.effects.machine.vcpuCount {
                if let vcpu = try standing(in: patches, memory) { try memory.effects.step(vcpu) }
            }
            if let vcpu = try standing(in: patches, memory) {
                throw AgentError.timedOut("\(vcpu) does not leave the gate to the page-table filter")
            }
            let (places, failure) = patches.detachment(in: kernel.memory)
            for place in places { try memory.effects.restoreCode(place) }
            if let failure { throw failure }
        } catch {
            throw Self.agentError(error)
        }
        self.patches = nil
        replaced = []
    }

    /// The guest has given code that is patched other frames: whoever would have to put it back is told. The guest may
    /// run.
    private func followCode(_ memory: AgentMemory) throws(AgentError) {
        guard let patches else { return }
        let moved: [CodePatch.Place]
        do throws(PageTableFilterError) {
            moved = try patches.places(in: kernel.memory).filter { !replaced.contains($0.physical) }
        } catch {
            // A page that is absent is followed when it is back.
            return
        }
        guard !moved.isEmpty else { return }
        do throws(HypervisorError) {
            try memory.effects.withPaused { () throws(HypervisorError) in
                for place in moved {
                    var found = [UInt8](repeating: 0, count: place.patch.count)
                    let isOurs =
                        found.withUnsafeMutableBytes { buffer in
                            (try? kernel.memory.physical.read(at: place.physical, into: buffer)) != nil
                        } && found == place.patch
                    if isOurs {
                        try memory.effects.replaceCode(place)
                        replaced.insert(place.physical)
                    }
                }
            }
        } catch {
            throw .hypervisor(error)
        }
    }

    /// A vCPU on its way through the gate.
    private func standing(
        in patches: PageTableFilterPatches, _ memory: AgentMemory
    ) throws(HypervisorError) -> VCPU? {
        for index in 0..<memory.effects.machine.vcpuCount {
            if patches.isBlocking(try memory.effects.machine.registers(of: VCPU(index)).rip) { return VCPU(index) }
        }
        return nil
    }

    public var ownPatches: [CodePatch.Place] { (try? patches?.places(in: kernel.memory)) ?? [] }

    public func forget() {
        memory = nil
        reader = nil
        patches = nil
        replaced = []
        watched = [:]
        watchedBefore = [:]
        table = PageTableWatchTable(layout)
        lost = 0
    }

    // MARK: Watching

    /// Looks up what the pages are translated by now, and tells the filter.
    private func updateWatches() throws(AgentError) {
        guard let memory else { return }
        func look(_ pages: some Sequence<GuestVirtualAddress>) -> [WatchedTranslations.Entry] {
            WatchedTranslations(of: pages, kernel.memory.space, in: kernel.memory.physical).entries
        }
        let own = look(pages)
        wantedPlaces = Set(own.map(\.place))
        // The code that is patched is watched as well: where it goes, the patches go.
        let code = look(patches?.pages ?? [])
        codePlaces = Set(code.map(\.place))
        let found = own + code.filter { !wantedPlaces.contains($0.place) }
        let wanted = Set(found.flatMap(\.addresses))
        for address in Set(watched.values.flatMap(\.addresses)).subtracting(wanted).sorted() {
            try make(table.remove(address), memory)
        }
        let numbers = Dictionary(watched.map { ($0.value, $0.key) }) { first, _ in first }
        watchedBefore = watched
        watched = [:]
        // A page's mark holds for all entries that it is translated by. To look for them is to look through all tables.
        let places: Set<GuestPhysicalAddress> =
            immediate.isEmpty ? [] : immediate == pages ? wantedPlaces : Set(look(immediate).map(\.place))
        for entry in found {
            let number = numbers[entry] ?? nextNumber
            if number == nextNumber { nextNumber &+= 1 }
            watched[number] = entry
            for address in entry.addresses {
                let writes: [PageTableFilterWrite]
                do throws(PageTableFilterError) {
                    writes = try table.insert(
                        address, index: number, isImmediate: places.contains(entry.place))
                } catch {
                    throw .unsupported("\(error)")
                }
                try make(writes, memory)
            }
        }
    }

    public func collect(from memory: AgentMemory) throws(AgentError) -> [AgentReport] {
        guard var reader else { return [] }
        let batch: PageTableReportReader.Batch
        let counts: PageTableFilterCounts
        do throws(MemoryError) {
            batch = try reader.read(from: kernel.memory.hardware)
            counts = try reader.counts(from: kernel.memory.hardware)
        } catch {
            throw .memory(error, doing: "reading the page-table filter's reports")
        }
        self.reader = reader
        guard !batch.isCorrupt else { throw .unsupported("the page-table filter's reports have been overwritten") }
        guard counts.unknown == 0, counts.fromUser == 0 else {
            throw .unsupported(
                "the page-table filter was entered from \(counts.lastUnknown), where it has replaced nothing")
        }
        if let acknowledgement = batch.acknowledgement { try make([acknowledgement], memory) }
        var reports: [AgentReport] = []
        var isMoved = false
        var isCodeMoved = false
        for report in batch.reports {
            guard let entry = watched[report.watch] ?? watchedBefore[report.watch] else { continue }
            isMoved = isMoved || entry.level > 1
            isCodeMoved = isCodeMoved || codePlaces.contains(entry.place)
            guard wantedPlaces.contains(entry.place) else { continue }
            reports.append(
                .translationChanged(
                    TranslationChange(
                        page: entry.page, level: entry.level, old: report.old, new: report.new, writer: report.end,
                        isAtOnce: standingReports.contains(report.sequence))))
        }
        if counts.lost > lost {
            reports.append(.lost(counts.lost - lost))
            lost = counts.lost
            isMoved = true
            isCodeMoved = true
        }
        if isCodeMoved { try followCode(memory) }
        // What hangs from an upper entry lies elsewhere now.
        if isMoved { try updateWatches() }
        return reports
    }

    // MARK: Writing

    private func make(_ writes: [PageTableFilterWrite], _ memory: AgentMemory) throws(AgentError) {
        for write in writes { try memory.writeData(write.bytes, at: memory.base + UInt64(write.offset)) }
    }

    /// Everything that can go wrong, in the terms of agents.
    private static func agentError(_ error: any Error) -> AgentError {
        switch error {
        case let error as AgentError: error
        case let error as HypervisorError: .hypervisor(error)
        default: .unsupported("\(error)")
        }
    }
}
