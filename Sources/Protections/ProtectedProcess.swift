import GuestMemory
import HypervisorInterface
import WindowsGuest

/// The code of one running process.
final class ProtectedProcess {
    /// Where a page of code comes from.
    private enum Owner: Hashable {
        /// A section of a module.
        case module(UserModules.Module, section: String)
        /// Executable when the process was first looked at.
        case region
    }

    private struct Page {
        var watched: WatchedPage
        var owner: Owner
    }

    let process: GuestProcess
    private let modules: UserModules
    private var pages: [GuestVirtualAddress: Page] = [:]
    /// In order; the keys of `pages`.
    private var order: [GuestVirtualAddress] = []
    /// Executable pages that were reported and are still there.
    private var foreign: Set<GuestVirtualAddress> = []
    private var wasTruncated: Bool
    /// The page that is to be checked next; nil where the page tables are to be read first.
    private var next: Int?

    /// Takes what the process has now for the original.
    /// - Returns: nil where the process has not loaded ntdll yet.
    init?(_ process: GuestProcess, _ kernel: WindowsKernel, patches: [CodePatch.Place]) throws(MemoryError) {
        self.process = process
        modules = UserModules(of: process, kernel: kernel)
        guard modules.modules().contains(where: { $0.name.lowercased() == "ntdll.dll" }) else { return nil }
        let executable = try ExecutablePages(modules.memory)
        wasTruncated = executable.isTruncated
        let sections = codeSections()
        let reader = Self.reader(modules.memory, patches)
        for address in executable.pages {
            // Where nothing can forbid execution, a page of data is no news.
            guard let owner = owner(of: address, sections) ?? (executable.canForbid ? .region : nil) else { continue }
            try adopt(address, owner, reader)
        }
        order.sort()
    }

    func startOver() { next = nil }

    /// What may change in a process is its frames, when it writes to a page of its own, and rights that are taken away.
    private static func reader(_ memory: KernelMemory, _ patches: [CodePatch.Place]) -> PageReader {
        var reader = PageReader(memory, patches: patches)
        reader.gains = [.writable]
        reader.losses = []
        return reader
    }

    /// Checks from where the last slice ended.
    /// - Returns: whether the round is complete.
    func check(
        patches: [CodePatch.Place], budget: inout Int, into found: inout [Violation]
    ) throws(MemoryError) -> Bool {
        let reader = Self.reader(modules.memory, patches)
        if next == nil {
            guard budget > 0 else { return false }
            try checkLayout(reader, budget: &budget, into: &found)
        }
        var index = next ?? 0
        while index < order.count {
            next = index
            guard budget > 0 else { return false }
            budget -= PageReader.pageSize
            try check(order[index], reader, into: &found)
            index += 1
        }
        next = nil
        return true
    }

    private func check(
        _ address: GuestVirtualAddress, _ reader: PageReader, into found: inout [Violation]
    ) throws(MemoryError) {
        guard var page = pages[address] else { return }
        // Code that its own process may write to is not compared: it is made while it runs.
        if page.owner == .region, page.watched.baseline?.rights.contains(.writable) == true { return }
        let new = try page.watched.check(reader, .userCode, owner: name(of: page.owner))
        if !new.isEmpty, case .module(let module, _) = page.owner, !modules.modules().contains(module) {
            // The module was unloaded, and something else is there now.
            pages[address] = nil
            return
        }
        found += new
        pages[address] = page
    }

    private func name(of owner: Owner) -> String {
        switch owner {
        case .module(let module, let section):
            module.name.lowercased() == process.imageName.lowercased()
                ? "\(process.imageName)'s \(section)" : "\(process.imageName)'s \(module.name) (\(section))"
        case .region: "\(process.imageName)'s executable memory"
        }
    }

    /// Looks for executable pages that were not there before.
    private func checkLayout(
        _ reader: PageReader, budget: inout Int, into found: inout [Violation]
    ) throws(MemoryError) {
        let executable = try ExecutablePages(modules.memory)
        budget -= executable.tablesRead * PageReader.pageSize
        var unknown = executable.pages.filter { pages[$0] == nil }
        foreign.formIntersection(unknown)
        if executable.isTruncated, !wasTruncated {
            found.append(
                Violation(
                    protection: .userCode, what: "\(process.imageName) has more page tables than can be looked at",
                    address: executable.pages.last ?? GuestVirtualAddress(0)))
        }
        wasTruncated = executable.isTruncated
        unknown.removeAll { foreign.contains($0) }
        guard !unknown.isEmpty else { return }
        // A page that is there once only is one in the middle of a change.
        let again = Set(try ExecutablePages(modules.memory).pages)
        unknown.removeAll { !again.contains($0) }
        let sections = codeSections()
        var new: [GuestVirtualAddress] = []
        for address in unknown {
            if let owner = owner(of: address, sections) {
                try adopt(address, owner, reader)
            } else if executable.canForbid {
                new.append(address)
            }
        }
        order = pages.keys.sorted()
        foreign.formUnion(new)
        for run in Self.runs(of: new) {
            let size = run.count * (PageReader.pageSize / 1024)
            found.append(
                Violation(
                    protection: .userCode,
                    what: "\(process.imageName) has \(size) KiB of new executable memory", address: run.start))
        }
    }

    private func adopt(_ address: GuestVirtualAddress, _ owner: Owner, _ reader: PageReader) throws(MemoryError) {
        var watched = WatchedPage(address, isPinned: false)
        watched.baseline = try reader.baseline(of: address)
        // A module's code is not writable when it is loaded, whatever it is when it is first seen.
        if case .module = owner {
            watched.baseline?.rights.remove(.writable)
        } else if watched.baseline?.physical == nil {
            // Memory that is paged out may be writable.
            watched.baseline?.rights.insert(.writable)
        }
        pages[address] = Page(watched: watched, owner: owner)
        order.append(address)
    }

    /// The executable sections of all modules that the process says it has.
    private func codeSections() -> [(range: Range<UInt64>, owner: Owner)] {
        modules.modules().flatMap { module -> [(range: Range<UInt64>, owner: Owner)] in
            guard let image = try? PEImage(at: module.base, in: modules.memory) else { return [] }
            return image.sections.filter { $0.isExecutable && !$0.isWritable && $0.virtualSize > 0 }.map { section in
                let start = image.address(rva: section.rva).page.rawValue
                let end = (image.address(rva: section.rva) + UInt64(section.virtualSize) + 4095).page.rawValue
                return (start..<max(start, end), .module(module, section: section.name))
            }
        }
    }

    private func owner(
        of address: GuestVirtualAddress, _ sections: [(range: Range<UInt64>, owner: Owner)]
    ) -> Owner? {
        sections.first { $0.range.contains(address.rawValue) }?.owner
    }

    /// Pages that follow one another, from the lowest on.
    static func runs(of pages: [GuestVirtualAddress]) -> [(start: GuestVirtualAddress, count: Int)] {
        var runs: [(start: GuestVirtualAddress, count: Int)] = []
        for page in pages {
            if let last = runs.last, last.start + UInt64(last.count * PageReader.pageSize) == page {
                runs[runs.count - 1].count += 1
            } else {
                runs.append((page, 1))
            }
        }
        return runs
    }
}
