import Foundation
import GuestMemory
import HypervisorInterface
import TestSupport
import WindowsGuest
import X86

extension SyntheticKernel {
    convenience init(_ change: (inout SyntheticKernelOptions) -> Void) {
        var options = SyntheticKernelOptions()
        change(&options)
        self.init(options)
    }

    /// What a vCPU in the kernel would say.
    var processorTables: ProcessorTables { processorTables(cr3: cr3) }

    func processorTables(cr3: UInt64) -> ProcessorTables {
        ProcessorTables(
            control: ControlRegisters(cr0: 0x8005_0033, cr3: cr3, cr4: 0x0035_06f8, efer: 0xd01),
            idtBase: GuestVirtualAddress(idtBase), idtLimit: idtLimit, gdtBase: GuestVirtualAddress(0),
            gdtLimit: 0x57)
    }

    func locate() throws(DiscoveryError) -> WindowsKernel {
        try KernelLocator(physical: ram.physical).locate(processorTables)
    }

    func guestAddress(_ symbol: String) -> GuestVirtualAddress { GuestVirtualAddress(address(symbol)) }

    /// Everything up to the power function.
    func locatePowerFunction(patterns: [FunctionPatterns] = []) throws(DiscoveryError) -> PowerFunction {
        let kernel = try locate()
        let list = ProcessList(of: kernel, offsets: try KernelOffsets(of: kernel))
        return try PowerFunctionLocator(of: kernel, processes: try list.processes(), patterns: patterns).locate()
    }
}
