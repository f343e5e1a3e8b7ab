import GuestMemory

/// Finds the modules that a process has loaded, from its own loader's list.
///
/// All of it is memory that the process itself can write: what is found there is checked like any hostile
/// input, and believed only where something outside the process confirms it. Layouts: public structures
/// `_PEB`, `_PEB_LDR_DATA` and `_LDR_DATA_TABLE_ENTRY` (see `StructureLayout`).
///
/// A 32-bit process of a 64-bit guest has two lists; this is the 64-bit one, in which the 64-bit ntdll is.
public struct UserModules {
    /// A list longer than this is not followed further.
    public static let maximumModules = 1024

    /// A module as the list has it.
    public struct Module: Hashable, Sendable {
        public var base: GuestVirtualAddress
        /// Its file's name without the path; characters other than printable ASCII are "?".
        public var name: String
    }

    public let process: GuestProcess
    /// The process's address space.
    public let memory: KernelMemory
    private let layout: StructureLayout

    public init(of process: GuestProcess, kernel: WindowsKernel) {
        self.process = process
        memory = kernel.memory.inProcess(directoryTableBase: process.cr3)
        layout = kernel.architecture.layout
    }

    /// Where the module with this name starts; upper and lower case are the same.
    /// - Returns: nil where the process has no such module, or no modules at all yet.
    func base(of name: String) throws(DiscoveryError) -> GuestVirtualAddress? {
        guard let peb = process.peb else { return nil }
        return try reading("the modules of \(process.imageName)") { () throws(MemoryError) in
            let loader = try userPointer(at: peb + layout.loaderData)
            guard let loader else { return nil }
            let head = loader + layout.loadOrderList
            var entry = try userPointer(at: head)
            var remaining = Self.maximumModules
            while let current = entry, current != head, remaining > 0 {
                if let moduleName = try? memory.unicodeString(at: current + layout.moduleName, maximum: 520),
                    moduleName.lowercased() == name
                {
                    return try userPointer(at: current + layout.moduleBase)
                }
                entry = try userPointer(at: current)
                remaining -= 1
            }
            return nil
        }
    }

    /// All modules, in the order in which they were loaded, as far as the list can be followed. Entries that cannot
    /// be read, or whose base is no page of the lower half, are left out.
    public func modules() -> [Module] {
        var found: [Module] = []
        guard let peb = process.peb, let loader = try? userPointer(at: peb + layout.loaderData) else { return found }
        let head = loader + layout.loadOrderList
        var seen: Set<GuestVirtualAddress> = [head]
        var entry = try? userPointer(at: head)
        while let current = entry, seen.count <= Self.maximumModules, seen.insert(current).inserted {
            if let base = try? userPointer(at: current + layout.moduleBase), base == base.page,
                let name = try? memory.unicodeString(at: current + layout.moduleName, maximum: 520)
            {
                found.append(Module(base: base, name: printable(name)))
            }
            entry = try? userPointer(at: current)
        }
        return found
    }

    /// A pointer into the lower half; nil for null and for anything else.
    private func userPointer(at address: GuestVirtualAddress) throws(MemoryError) -> GuestVirtualAddress? {
        let value = try memory.pointer(at: address)
        return value.rawValue >= 0x10000 && value.rawValue < layout.userEnd ? value : nil
    }
}

/// A name found in the guest, fit to be shown.
func printable(_ name: String) -> String {
    String(String.UnicodeScalarView(name.unicodeScalars.map { (0x20..<0x7f).contains($0.value) ? $0 : "?" }))
}
