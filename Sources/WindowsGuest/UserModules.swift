import GuestMemory

/// Finds the modules that a process has loaded, from its own loader's list.
///
/// All of it is memory that the process itself can write: what is found there is checked like any hostile
/// input, and believed only where something outside the process confirms it. Layouts: public structures
/// `_PEB` (Ldr at 0x18), `_PEB_LDR_DATA` (InLoadOrderModuleList at 0x10), `_LDR_DATA_TABLE_ENTRY` (DllBase
/// at 0x30, BaseDllName at 0x58) of x64.
struct UserModules {
    static let maximumModules = 1024

    let process: GuestProcess
    let memory: KernelMemory

    init(of process: GuestProcess, kernel: WindowsKernel) {
        self.process = process
        memory = kernel.memory.inProcess(directoryTableBase: process.cr3)
    }

    /// Where the module with this name starts; upper and lower case are the same.
    /// - Returns: nil where the process has no such module, or no modules at all yet.
    func base(of name: String) throws(DiscoveryError) -> GuestVirtualAddress? {
        guard let peb = process.peb else { return nil }
        return try reading("the modules of \(process.imageName)") { () throws(MemoryError) in
            let loader = try userPointer(at: peb + 0x18)
            guard let loader else { return nil }
            let head = loader + 0x10
            var entry = try userPointer(at: head)
            var remaining = Self.maximumModules
            while let current = entry, current != head, remaining > 0 {
                if let moduleName = try? memory.unicodeString(at: current + 0x58, maximum: 520),
                    moduleName.lowercased() == name
                {
                    return try userPointer(at: current + 0x30)
                }
                entry = try userPointer(at: current)
                remaining -= 1
            }
            return nil
        }
    }

    /// A pointer into the lower half; nil for null and for anything else.
    private func userPointer(at address: GuestVirtualAddress) throws(MemoryError) -> GuestVirtualAddress? {
        let value = try memory.pointer(at: address)
        return value.rawValue >= 0x10000 && value.rawValue >> 47 == 0 ? value : nil
    }
}
