import GuestMemory

/// The core of an x86 machine: which physical memory is where in the file, and what its notes say of the vCPUs.
///
/// Whatever the file holds, parsing reads a bounded part of it and ends in a core or an error.
struct ELFCore {
    let header: ELFHeader
    /// Sorted, apart from each other. `hostAddress` is the offset in the file.
    let regions: [RAMRegion]
    /// One for each vCPU; empty where the notes have none that can be used.
    let processors: [QEMUProcessorState]
    /// The file has QEMU's notes.
    let isByQEMU: Bool
    /// Notes were there, but lie about their sizes, or are too many. None of them is used then.
    let notesAreDamaged: Bool

    /// - Throws: why the file is no core that can be used.
    init(_ file: some ImageBytes) throws(ImageError) {
        let header = try ELFHeader(file)
        self.header = header
        var layout = RegionLayout()
        var notes = Notes()
        var hasVirtualAddresses = false
        try ELFSegment.forEach(of: header, in: file) { (segment) throws(ImageError) in
            switch segment.type {
            case ELFSegment.load:
                try layout.add(segment, fileSize: file.size)
                // Without paging QEMU writes the physical address, or 0, as the virtual one.
                if segment.virtual != segment.physical, segment.virtual != 0 { hasVirtualAddresses = true }
            case ELFSegment.note:
                try notes.add(segment, of: file)
            default: break
            }
        }
        regions = try layout.regions(
            fillsGaps: hasVirtualAddresses && notes.isByQEMU, fileSize: file.size)
        processors = notes.areDamaged ? [] : notes.processors
        isByQEMU = notes.isByQEMU
        notesAreDamaged = notes.areDamaged
    }

    private struct Notes {
        var processors: [QEMUProcessorState] = []
        var isByQEMU = false
        var areDamaged = false
        /// In bytes, of all segments.
        private var size: UInt64 = 0
        private static let maximumSize: UInt64 = 16 << 20

        mutating func add(_ segment: ELFSegment, of file: some ImageBytes) throws(ImageError) {
            size = size.addingReportingOverflow(segment.size).overflow ? .max : size + segment.size
            // Memory may be whole where notes are not.
            guard size <= Self.maximumSize, file.holds(offset: segment.offset, count: segment.size) else {
                areDamaged = true
                return
            }
            let bytes = try file.bytes(at: segment.offset, count: segment.size, "notes")
            let areWhole = ELFNotes.forEach(in: bytes) { name, type, contents in
                guard name.elementsEqual(QEMUProcessorState.noteName), type == QEMUProcessorState.noteType else {
                    return
                }
                isByQEMU = true
                guard let state = QEMUProcessorState(contents), processors.count < QEMUProcessorState.maximumCount
                else {
                    areDamaged = true
                    return
                }
                processors.append(state)
            }
            if !areWhole { areDamaged = true }
        }
    }
}
