import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// What the fuzzers do with an input, and the unit tests with the fuzzers' corpora. Nothing may trap, hang, or take
/// memory at will; what discovery says has to keep to its own bounds.
public enum HostileInput {
    /// How the input is to be read.
    public enum Kind: String, CaseIterable, Sendable {
        /// A guest's memory around a kernel's image: `image(_:ram:)`.
        case image = "Image"
        /// A file of patterns: `patterns(_:)`.
        case patterns = "Patterns"
        /// Changes to a generated guest: `guest(_:ram:)`.
        case guest = "Guest"
    }

    public static func run(_ kind: Kind, _ bytes: [UInt8], ram: SyntheticRAM) {
        switch kind {
        case .image: image(bytes, ram: ram)
        case .patterns: patterns(bytes)
        case .guest: guest(bytes, ram: ram)
        }
    }

    /// The first byte chooses the paging mode, the rest is the image, from its base on.
    static func image(_ bytes: [UInt8], ram: SyntheticRAM) {
        guard let first = bytes.first else { return }
        let modes: [PagingMode] = [.fourLevel, .pae, .legacy32(largePages: true), .fiveLevel]
        let mode = modes[Int(first & 3)]
        let base: UInt64 = mode.pointerSize == 8 ? 0xffff_f800_0020_0000 : 0x8280_0000
        ram.reset()
        let tables = PageTableBuilder(ram: ram, mode: mode)
        let pages = max(1, min(64, (bytes.count + 4094) / 4096))
        tables.mapNew(base, pages: pages, [.present, .writable])
        tables.write(Array(bytes.dropFirst().prefix(pages * 4096)), at: base)
        let idt = base - 0x10_0000
        tables.mapNew(idt, .kernelData)
        for vector in 0..<32 as Range<UInt64> {
            let handler = base + 0x1000 + vector * 16
            let low = handler & 0xffff | 0x8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48
            tables.write(low, at: idt + vector * 2 * mode.pointerSize)
            if mode.pointerSize == 8 { tables.write(handler >> 32, at: idt + vector * 16 + 8) }
        }
        let memory = KernelMemory(tables.memory)
        if let image = try? PEImage(at: GuestVirtualAddress(base), in: memory) { check(image, in: memory) }
        let isLong = mode.pointerSize == 8
        let control = ControlRegisters(
            cr0: 0x8005_0033, cr3: tables.root,
            cr4: mode == .fiveLevel ? 0x1020 : mode == .legacy32(largePages: true) ? 0x10 : 0x20,
            efer: isLong ? 0xd01 : 0x800)
        let processor = ProcessorTables(
            control: control, idtBase: GuestVirtualAddress(idt), idtLimit: 0xfff, gdtBase: GuestVirtualAddress(0),
            gdtLimit: 0x57)
        survey([processor], physical: ram.physical)
    }

    private static func check(_ image: PEImage, in memory: KernelMemory) {
        for section in image.sections {
            precondition(UInt64(section.rva) + UInt64(section.virtualSize) <= UInt64(image.size), "a section outside")
        }
        for directory in [image.exportDirectory, image.exceptionDirectory].compactMap(\.self) {
            precondition(UInt64(directory.rva) + UInt64(directory.size) <= UInt64(image.size), "a directory outside")
        }
        guard let exports = try? ExportTable(of: image, in: memory) else { return }
        for (name, export) in exports.exports {
            precondition(export.rva < image.size, "an export outside")
            guard let address = try? exports.address(of: name) else { continue }
            precondition(image.contains(address), "an address outside")
        }
    }

    static func patterns(_ bytes: [UInt8]) {
        let text = String(decoding: bytes, as: UTF8.self)
        guard let file = try? FunctionPatterns(yaml: text, source: "input") else { return }
        precondition(file.patterns.count + file.rejected.count <= FunctionPatterns.maximumPatterns)
        for pattern in file.patterns {
            precondition((1...BytePattern.maximumCount).contains(pattern.bytes.count), "a pattern without bounds")
            bytes.withUnsafeBytes { buffer in
                for place in pattern.bytes.matches(in: buffer) {
                    precondition(
                        pattern.bytes.matches(buffer, at: place) && place + pattern.bytes.count <= buffer.count)
                }
            }
        }
    }

    /// The first two bytes are a seed's; then come changes of eight bytes each: where (three), how many bytes of the
    /// value count, and the value.
    static func guest(_ bytes: [UInt8], ram: SyntheticRAM) {
        guard bytes.count >= 2 else { return }
        ram.reset()
        let guest = ShapedKernel(KernelShape(seed: UInt64(bytes[0]) | UInt64(bytes[1] & 3) << 8), ram: ram)
        let processors = guest.processorTables
        let places = guest.interestingPlaces
        for start in stride(from: 2, to: bytes.count - 7, by: 8) {
            let place = UInt64(bytes[start]) | UInt64(bytes[start + 1]) << 8 | UInt64(bytes[start + 2]) << 16
            // A place that matters, or anything in RAM, page tables included.
            let target =
                bytes[start + 3] & 0x80 != 0
                ? places[Int(bytes[start]) % places.count] + UInt64(bytes[start + 1]) | UInt64(bytes[start + 2] & 0xf)
                    << 8
                : place % ram.used
            for index in 0...UInt64(bytes[start + 3] & 3) where target + index < ram.used {
                ram.store(bytes[start + 4 + Int(index)], at: target + index)
            }
        }
        survey(processors, physical: ram.physical)
    }

    /// All that is asked of a guest's kernel without stopping it.
    private static func survey(_ processors: [ProcessorTables], physical: PhysicalMemory) {
        guard let kernel = try? KernelLocator(physical: physical).locate(among: processors) else { return }
        precondition(kernel.memory.pagingMode.isInKernelHalf(kernel.base), "a kernel in the lower half")
        _ = KernelModules(of: kernel).modules()
        _ = try? KernelSlack.find(64, in: kernel)
        _ = try? BugCheckFunction(of: kernel)
        _ = try? SharedUserData(of: kernel).interruptTime()
        if let table = try? ServiceTable(of: kernel) {
            precondition(ServiceTable.plausibleLimits.contains(table.limit) && !table.confirmations.isEmpty)
            _ = try? table.kernelStubs(number: 7, in: kernel)
            for number in [0, 7, table.limit - 1, table.limit] {
                guard let function = try? table.function(number, in: kernel) else { continue }
                precondition(number < table.limit && kernel.image.isExecutable(function), "a service that is no code")
                _ = ReentryProof(of: kernel, serviceTable: table).examine(function, number: number)
            }
        }
        guard let offsets = try? KernelOffsets(of: kernel) else { return }
        let list = ProcessList(of: kernel, offsets: offsets)
        guard let processes = try? list.processes() else { return }
        precondition(processes.count <= ProcessList.maximumProcesses)
        for process in processes.prefix(8) {
            let modules = UserModules(of: process, kernel: kernel).modules()
            precondition(modules.count <= UserModules.maximumModules)
            _ = try? list.process(at: process.object)
        }
        guard let function = try? PowerFunctionLocator(of: kernel, processes: processes).locate() else { return }
        precondition(kernel.image.isExecutable(function.address), "a power function that is no code")
    }
}

extension ShapedKernel {
    /// Physical addresses of what discovery reads first.
    var interestingPlaces: [UInt64] {
        let addresses =
            [
                base, base + UInt64(image.exportRVA), address("KiServiceTable"), address("KeServiceDescriptorTable"),
                address("PsGetProcessId"), address("ExGetPreviousMode"), address("NtSetSystemPowerState"),
                address("ZwSetSystemPowerState"), address("PsInitialSystemProcess"), places.idt,
            ] + processes.map(\.object)
        var physical = addresses.compactMap { address in
            (try? KernelMemory(tables.memory).translate(GuestVirtualAddress(address)))?.physical.rawValue
        }
        for process in processes.dropFirst() {
            for address in [places.peb, places.userImage, places.userImage + 0x1000] {
                let translation = try? process.tables.memory.translate(GuestVirtualAddress(address))
                if let translation { physical.append(translation.physical.rawValue) }
            }
        }
        return physical.map { $0 & ~0xff } + [tables.root]
    }
}
