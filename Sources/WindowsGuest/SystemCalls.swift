import GuestMemory

/// A system call's number, and where it was read.
public struct SystemCallNumber: Hashable, Sendable {
    public var number: UInt32
    /// The process whose ntdll named it.
    public var process: GuestProcess
    /// Other processes whose ntdll says the same.
    public var confirmedBy: [GuestProcess]
}

/// Reads the numbers of system calls, which change from build to build, from the guest's own ntdll.
public struct SystemCalls {
    /// Processes that are looked into before giving up.
    public static let maximumProcesses = 64
    /// Of those, as many as are asked to agree.
    static let witnesses = 3

    let kernel: WindowsKernel
    let processes: [GuestProcess]

    public init(of kernel: WindowsKernel, processes: [GuestProcess]) {
        self.kernel = kernel
        self.processes = processes
    }

    /// The number of the system call `name`, such as `NtSetSystemPowerState`.
    ///
    /// A process can forge its own copy of ntdll, so up to three are asked, oldest first (those are
    /// the system's own), and all must agree.
    /// - Throws: `notYet` while no process has a readable ntdll; `disagreement`; what is wrong with the stub.
    public func number(of name: String) throws(DiscoveryError) -> SystemCallNumber {
        var first: (number: UInt32, process: GuestProcess, stub: GuestVirtualAddress)?
        var confirmations: [GuestProcess] = []
        var failure: DiscoveryError?
        for process in processes.lazy.filter({ $0.peb != nil }).prefix(Self.maximumProcesses) {
            do throws(DiscoveryError) {
                guard let (number, stub) = try self.number(of: name, in: process) else { continue }
                if let first {
                    guard first.number == number else {
                        throw .disagreement(
                            "the number of \(name) (\(first.process.imageName)'s ntdll says \(first.number), "
                                + "\(process.imageName)'s says \(number))",
                            first: first.stub, second: stub)
                    }
                    confirmations.append(process)
                } else {
                    first = (number, process, stub)
                }
                if confirmations.count + 1 >= Self.witnesses { break }
            } catch {
                if case .disagreement = error { throw error }
                // What can be retried tells more: the name may be there in a page that is not resident.
                if failure?.canBeRetried != true { failure = error }
            }
        }
        guard let first else {
            throw failure ?? .stillBooting("no process has loaded ntdll yet")
        }
        return SystemCallNumber(number: first.number, process: first.process, confirmedBy: confirmations)
    }

    private func number(
        of name: String, in process: GuestProcess
    ) throws(DiscoveryError) -> (UInt32, GuestVirtualAddress)? {
        let modules = UserModules(of: process, kernel: kernel)
        guard let base = try modules.base(of: "ntdll.dll") else { return nil }
        let image = try PEImage(at: base, in: modules.memory)
        let exports = try ExportTable(of: image, in: modules.memory)
        let stub = try exports.address(of: name)
        let number = try SystemCallStub.userNumber(
            of: name, at: stub, in: modules.memory, architecture: image.architecture)
        return (number, stub)
    }
}
