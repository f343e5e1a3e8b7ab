import GuestMemory
import WindowsGuest
import X86

/// Reads who stands at the intercepted function's entry.
public struct CallerReader {
    private let kernel: WindowsKernel
    private let processes: ProcessList

    public init(kernel: WindowsKernel, offsets: KernelOffsets) {
        self.kernel = kernel
        processes = ProcessList(of: kernel, offsets: offsets)
    }

    /// What a caller asks for that stands at the function's first instruction.
    ///
    /// Where it cannot be read, the call must not go unseen: it may be a request, and is taken for one.
    public func request(_ registers: Registers) -> PowerRequest {
        switch kernel.architecture {
        case .x64: PowerRequest(x64: registers)
        case .x86: (try? PowerRequest(x86: registers, memory: kernel.memory)) ?? .unreadable
        }
    }

    /// Who stands at the function's first instruction, as far as it can be read.
    ///
    /// What cannot be read is left out, or zero: a call must not go unseen because its thread's page is away.
    /// - Parameter registers: of the vCPU.
    public func caller(_ registers: Registers) -> Caller {
        let returnAddress = (try? kernel.memory.pointer(at: GuestVirtualAddress(registers.rsp)))
        guard let thread = try? processes.currentThread(processorRegion: registers.processorRegion) else {
            return Caller(
                mode: .unknown, thread: GuestVirtualAddress(0), threadID: nil, processID: nil, processName: nil,
                returnAddress: returnAddress ?? GuestVirtualAddress(0))
        }
        let mode: Caller.Mode =
            switch try? processes.previousMode(ofThread: thread) {
            case .kernel: .kernel
            case .user: .user
            case nil: .unknown
            }
        let process = try? processes.callerProcess(ofThread: thread)
        return Caller(
            mode: mode, thread: thread, threadID: try? processes.threadID(of: thread), processID: process?.id,
            processName: process?.imageName, returnAddress: returnAddress ?? GuestVirtualAddress(0))
    }
}
