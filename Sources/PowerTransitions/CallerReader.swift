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

    /// - Parameter registers: of the vCPU, at the function's first instruction.
    /// - Throws: where the thread, its mode or the return address cannot be read. What only describes the
    ///   caller (its process's name) is left out where it cannot be had.
    public func caller(_ registers: Registers) throws(DiscoveryError) -> Caller {
        let thread = try processes.currentThread(gsBase: registers.gsBase)
        let mode = try processes.previousMode(ofThread: thread)
        let returnAddress: GuestVirtualAddress
        do throws(MemoryError) {
            returnAddress = try kernel.memory.pointer(at: GuestVirtualAddress(registers.rsp))
        } catch {
            throw .unreadable(reading: "the caller's stack", error)
        }
        let process = try? processes.callerProcess(ofThread: thread)
        return Caller(
            mode: mode == .kernel ? .kernel : .user, thread: thread, threadID: try? processes.threadID(of: thread),
            processID: process?.id, processName: process?.imageName, returnAddress: returnAddress)
    }
}
