import GuestMemory
import HypervisorInterface
import WindowsGuest

/// The code of all processes that have one of the given names.
final class UserCode {
    private let kernel: WindowsKernel
    private let list: ProcessList
    private(set) var names: Set<String> = []
    private var processes: [ProtectedProcess] = []
    private var next = 0

    init(_ kernel: WindowsKernel, _ offsets: KernelOffsets) {
        self.kernel = kernel
        list = ProcessList(of: kernel, offsets: offsets)
    }

    /// Protects processes of these names, too, those that run and those that will.
    func add(_ names: [String], patches: [CodePatch.Place]) throws(ProtectionError) {
        self.names.formUnion(names.map { $0.lowercased() })
        try refresh(patches)
    }

    func startOver() {
        next = 0
        for process in processes { process.startOver() }
    }

    /// Checks from where the last slice ended.
    /// - Returns: whether the round is complete.
    func check(
        patches: [CodePatch.Place], budget: inout Int, into found: inout [Violation]
    ) throws(ProtectionError) -> Bool {
        if next == 0 { try refresh(patches) }
        while next < processes.count {
            guard budget > 0 else { return false }
            let process = processes[next]
            var new: [Violation] = []
            let isComplete: Bool
            do throws(MemoryError) {
                isComplete = try process.check(patches: patches, budget: &budget, into: &new)
            } catch {
                throw .memory(error)
            }
            // The memory of a process that has ended may be anyone's by now.
            if !new.isEmpty, try !running().contains(where: { Self.isSame($0, process.process) }) {
                processes.remove(at: next)
                continue
            }
            found += new
            guard isComplete else { return false }
            next += 1
        }
        next = 0
        return true
    }

    /// Lets go of processes that have ended, takes in those that have started.
    private func refresh(_ patches: [CodePatch.Place]) throws(ProtectionError) {
        let running = try running()
        processes.removeAll { known in !running.contains { Self.isSame($0, known.process) } }
        for process in running where !processes.contains(where: { Self.isSame($0.process, process) }) {
            do throws(MemoryError) {
                if let new = try ProtectedProcess(process, kernel, patches: patches) { processes.append(new) }
            } catch {
                throw .memory(error)
            }
        }
    }

    /// The guest's processes of those names.
    private func running() throws(ProtectionError) -> [GuestProcess] {
        do throws(DiscoveryError) {
            return try list.processes().filter { process in
                process.peb != nil && names.contains { Self.matches(process.imageName, $0) }
            }
        } catch {
            throw .discovery(.userCode, error)
        }
    }

    /// EPROCESS keeps 14 or 15 bytes of a longer name.
    static func matches(_ imageName: String, _ name: String) -> Bool {
        let found = imageName.lowercased()
        return found == name || (found.utf8.count >= 14 && name.hasPrefix(found))
    }

    private static func isSame(_ a: GuestProcess, _ b: GuestProcess) -> Bool {
        a.object == b.object && a.id == b.id && a.cr3 == b.cr3
    }
}
