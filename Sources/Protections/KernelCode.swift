import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// Code and constants of all images that the kernel has loaded.
final class KernelCode {
    /// Over all images: 256 MiB of code, of which copies are kept.
    static let maximumPages = 1 << 16

    private struct Page {
        var watched: WatchedPage
        var image: Int
        var section: Int
    }

    private let kernel: WindowsKernel
    private var images: [KernelModules.Module] = []
    /// Images that the last round saw for the first time. What the loader still writes to them is no violation, so
    /// they are taken in when the next round finds them, too.
    private var loading: Set<KernelModules.Module> = []
    private var pages: [Page] = []
    private var indices: [GuestVirtualAddress: Int] = [:]
    private var next = 0

    init(_ kernel: WindowsKernel, patches: [CodePatch.Place]) throws(MemoryError) {
        self.kernel = kernel
        for module in KernelModules(of: kernel).modules() { add(module) }
        let reader = PageReader(kernel.memory, patches: patches)
        for index in pages.indices {
            pages[index].watched.baseline = try reader.baseline(of: pages[index].watched.address)
        }
    }

    var addresses: [GuestVirtualAddress] { pages.map(\.watched.address) }

    func startOver() { next = 0 }

    /// Checks pages from where the last slice ended, until the budget is used up or the last page was checked.
    /// - Returns: whether the round is complete.
    func check(
        _ reader: PageReader, budget: inout Int, into found: inout [Violation]
    ) throws(MemoryError) -> Bool {
        if next == 0 { found += refresh() }
        while next < pages.count {
            guard budget > 0 else { return false }
            budget -= PageReader.pageSize
            let index = next
            next += 1
            try check(index, reader, into: &found)
        }
        next = 0
        return true
    }

    /// Checks one page, where it is one of these.
    func check(
        page: GuestVirtualAddress, _ reader: PageReader, into found: inout [Violation]
    ) throws(MemoryError) {
        guard let index = indices[page.page] else { return }
        try check(index, reader, into: &found)
    }

    private func check(_ index: Int, _ reader: PageReader, into found: inout [Violation]) throws(MemoryError) {
        let module = images[pages[index].image]
        let section = pages[index].section
        found += try pages[index].watched.check(
            reader, .kernelCode, owner: "\(module.name)'s \(module.image.sections[section].name)")
    }

    /// Takes in images that were loaded, and lets go of those that were unloaded.
    ///
    /// An image that is no longer on the list, but still where it was, has been hidden, and is kept.
    /// - Returns: images in whose place there is another. A driver can be unloaded and another one loaded there
    ///   between two looks; but so can a header be forged, so that changed code would be taken for a new image's.
    private func refresh() -> [Violation] {
        let listed = KernelModules(of: kernel).modules()
        let names = Dictionary(listed.map { ($0.image.base, $0.name) }) { first, _ in first }
        var replaced: [Violation] = []
        var gone: Set<Int> = []
        for (index, known) in images.enumerated().dropFirst() {
            let image = known.image
            // A header that is not readable now says nothing of an image that is on the list.
            let current = try? PEImage(at: image.base, in: kernel.memory)
            if current == image { continue }
            if let name = names[image.base] {
                guard current != nil else { continue }
                replaced.append(
                    Violation(
                        protection: .kernelCode, what: "\(known.name) was replaced by \(name)", address: image.base))
            }
            gone.insert(index)
        }
        if !gone.isEmpty { remove(gone) }
        let known = Set(images.map(\.image.base))
        let new = listed.filter { !known.contains($0.image.base) }
        for module in new where loading.contains(module) { add(module) }
        loading = Set(new).subtracting(images)
        return replaced
    }

    private func remove(_ gone: Set<Int>) {
        var places: [Int: Int] = [:]
        for index in images.indices where !gone.contains(index) { places[index] = places.count }
        images = images.indices.filter { !gone.contains($0) }.map { images[$0] }
        pages = pages.compactMap { page in
            guard let place = places[page.image] else { return nil }
            var kept = page
            kept.image = place
            return kept
        }
        indices = [:]
        for (index, page) in pages.enumerated() { indices[page.watched.address] = index }
    }

    private func add(_ module: KernelModules.Module) {
        images.append(module)
        for (number, section) in module.image.sections.enumerated() where Self.isConstant(section) {
            // Including what follows the section in its last page.
            let start = UInt64(section.rva) & ~0xfff
            let end = (UInt64(section.rva) + UInt64(section.virtualSize) + 4095) & ~4095
            for offset in stride(from: start, to: end, by: 4096) {
                let address = module.image.base + offset
                guard pages.count < Self.maximumPages, indices[address] == nil else { continue }
                indices[address] = pages.count
                pages.append(
                    Page(
                        watched: WatchedPage(address, isPinned: !section.name.hasPrefix("PAGE")),
                        image: images.count - 1, section: number))
            }
        }
    }

    /// Sections that nobody may change and that stay.
    static func isConstant(_ section: PEImage.Section) -> Bool {
        !section.isWritable && !section.isDiscardable && !section.name.hasPrefix("INIT")
    }
}
