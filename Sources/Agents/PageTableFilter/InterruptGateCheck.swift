import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// Why a vector cannot be used for an agent.
public enum InterruptGateError: Error, Hashable, Sendable {
    /// Memory of the guest's could not be read.
    case unreadable(vector: UInt8, MemoryError)
    /// There is no vCPU.
    case noProcessor
    /// A vCPU's gate is not what the kernel's own are; why, in words.
    case unusable(vector: UInt8, processor: Int, String)
    /// Two vCPUs' gates lead to different places.
    case different(vector: UInt8, GuestVirtualAddress, GuestVirtualAddress)
    /// The handler's first bytes cannot be replaced; why, in words.
    case unpatchable(GuestVirtualAddress, String)
}

extension InterruptGateError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .unreadable(let vector, let error):
            "vector \(vector) cannot be used: \(error)"
        case .noProcessor:
            "the guest has no vCPU whose interrupt table could be looked at"
        case .unusable(let vector, let processor, let why):
            "vector \(vector) cannot be used: on vCPU \(processor) \(why)"
        case .different(let vector, let first, let second):
            "vector \(vector) cannot be used: it leads to \(first) on one vCPU and to \(second) on another"
        case .unpatchable(let handler, let why):
            "the interrupt handler at \(handler) cannot be replaced: \(why)"
        }
    }
}

/// Whether a vector leads where an agent's interrupt may go.
public enum InterruptGateCheck {
    /// Looks at the vector's gate on every vCPU: present, an interrupt gate for level 0 on the interrupted stack, with
    /// the selector of the kernel's code, all leading to one handler in the kernel's image.
    ///
    /// The selector of the kernel's code is that of the page-fault handler's gate (vector 14).
    /// - Parameter tables: of all vCPUs (`VirtualMachine.processorTables`).
    /// - Returns: the handler.
    public static func handler(
        of vector: UInt8, on tables: [ProcessorTables], in kernel: WindowsKernel
    ) throws(InterruptGateError) -> GuestVirtualAddress {
        var handler: GuestVirtualAddress?
        for (processor, table) in tables.enumerated() {
            func unusable(_ why: String) -> InterruptGateError {
                .unusable(vector: vector, processor: processor, why)
            }
            guard let gate = try gate(vector, table, kernel.memory) else {
                throw unusable("it has no gate that an interrupt could go through")
            }
            guard let pageFault = try self.gate(14, table, kernel.memory) else {
                throw unusable("the page fault's vector has no gate")
            }
            guard gate.kind == .interrupt else { throw unusable("it is a trap gate, which leaves interrupts on") }
            guard gate.privilegeLevel == 0 else {
                throw unusable("programs may call it: its privilege level is \(gate.privilegeLevel)")
            }
            guard gate.stackIndex == 0 else {
                throw unusable("it switches to interrupt stack \(gate.stackIndex)")
            }
            guard gate.selector == pageFault.selector, gate.selector & 3 == 0 else {
                throw unusable("its code segment is \(gate.selector), the kernel's is \(pageFault.selector)")
            }
            guard let section = kernel.image.section(containing: gate.handler), section.isExecutable,
                !section.isDiscardable
            else { throw unusable("it leads to \(gate.handler), outside of the kernel's code") }
            if let handler, handler != gate.handler {
                throw .different(vector: vector, handler, gate.handler)
            }
            handler = gate.handler
        }
        guard let handler else { throw .noProcessor }
        return handler
    }

    private static func gate(
        _ vector: UInt8, _ tables: ProcessorTables, _ memory: KernelMemory
    ) throws(InterruptGateError) -> InterruptGate? {
        do throws(MemoryError) {
            return try InterruptGate.read(
                vector: vector, idtBase: tables.idtBase, idtLimit: tables.idtLimit, in: memory)
        } catch {
            throw .unreadable(vector: vector, error)
        }
    }
}
