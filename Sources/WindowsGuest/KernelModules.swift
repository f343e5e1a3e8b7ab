import GuestMemory

/// The images that the kernel has loaded: itself, its libraries, its drivers.
///
/// Read from PsLoadedModuleList, which kernel code can write: the walk is bounded, ends at the first entry that was
/// seen before or cannot be one, and leaves out what does not look like an image. Layout: public structure
/// `_KLDR_DATA_TABLE_ENTRY` (its links are at 0; see `StructureLayout`).
public struct KernelModules {
    /// A list longer than this is not followed further. Windows has some 200.
    public static let maximumModules = 1024

    /// An image as the list has it.
    public struct Module: Hashable, Sendable {
        public var name: String
        public var image: PEImage
    }

    let kernel: WindowsKernel
    private let layout: StructureLayout

    public init(of kernel: WindowsKernel) {
        self.kernel = kernel
        layout = kernel.architecture.layout
    }

    /// The kernel's own image first, whatever the list says; then the others, in the order in which they were loaded.
    ///
    /// Images whose headers are not readable now are left out, as are those that overlap one before them.
    public func modules() -> [Module] {
        var found = [Module(name: kernel.exports.moduleName, image: kernel.image)]
        guard let head = try? kernel.export("PsLoadedModuleList") else { return found }
        var seen: Set<GuestVirtualAddress> = [head]
        var entry = kernelPointer(at: head)
        while let current = entry, seen.count <= Self.maximumModules, seen.insert(current).inserted {
            if let base = kernelPointer(at: current + layout.moduleBase), base == base.page,
                let image = try? PEImage(at: base, in: kernel.memory), image.architecture == kernel.architecture,
                !found.contains(where: { overlaps($0.image, image) })
            {
                let name = try? kernel.memory.unicodeString(at: current + layout.moduleName, maximum: 520)
                found.append(Module(name: name.map(printable) ?? "the image at \(base)", image: image))
            }
            entry = kernelPointer(at: current)
        }
        return found
    }

    private func overlaps(_ a: PEImage, _ b: PEImage) -> Bool {
        b.base.distance(from: a.base) < UInt64(a.size) || a.base.distance(from: b.base) < UInt64(b.size)
    }

    /// A pointer into the upper half, to where a structure can be; nil for anything else.
    private func kernelPointer(at address: GuestVirtualAddress) -> GuestVirtualAddress? {
        guard let value = try? kernel.memory.pointer(at: address), kernel.isKernelPointer(value)
        else { return nil }
        return value
    }
}
