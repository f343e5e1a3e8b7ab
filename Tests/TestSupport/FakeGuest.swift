import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// A synthetic NT kernel in a fake machine, with threads that call its NtSetSystemPowerState.
public final class FakeGuest {
    /// A thread of the guest, with a kernel stack of its own.
    public struct Thread: Equatable {
        public var object: UInt64
        /// RSP at the power function's entry when a user's system call leads there.
        public var stackSlot: UInt64
    }

    /// Where calls of the power function return to.
    public static let returnAddress: UInt64 = 0xffff_f806_4a21_2345
    static let stacks: UInt64 = 0xffff_b800_0002_8000

    public let kernel: SyntheticKernel
    public let machine: FakeMachine
    public private(set) var threads: [Thread] = []

    public var ram: SyntheticRAM { kernel.ram }
    public var entry: GuestVirtualAddress { GuestVirtualAddress(kernel.address("NtSetSystemPowerState")) }
    public var entrySite: BreakpointSite { .execution(entry) }

    public init(_ options: SyntheticKernelOptions = .init(), vcpus: Int = 1, threads count: Int = 6) {
        kernel = SyntheticKernel(options)
        machine = FakeMachine(ram: kernel.ram, vcpus: vcpus)
        machine.tables = (0..<vcpus).map { _ in processorTables }
        for index in 0..<count {
            // A page each: the thread's object in its first half, its stack in the second.
            let page = Self.stacks + UInt64(index) * 0x1000
            threads.append(Thread(object: page + 0x40, stackSlot: page + 0xf08))
            kernel.write(kernel.processes[2].object, at: page + 0x40 + UInt64(SyntheticKernel.Layout.threadProcess))
            kernel.write(kernel.processes[2].object, at: page + 0x40 + UInt64(SyntheticKernel.Layout.attachedProcess))
            kernel.write(UInt64(0x1000 + 4 * index), at: page + 0x40 + UInt64(SyntheticKernel.Layout.threadID))
        }
    }

    /// Maps pages of the kernel's as its pool has them: code can run in them.
    public func addPool(pages: Int, at address: UInt64 = pool, _ flags: PageTableBuilder.Flags = [.present, .writable])
    {
        kernel.tables.mapNew(address, pages: pages, flags)
    }

    public static let pool: UInt64 = 0xffff_b900_0000_0000

    /// What a vCPU in the kernel says.
    public var processorTables: ProcessorTables {
        ProcessorTables(
            control: ControlRegisters(cr0: 0x8005_0033, cr3: kernel.cr3, cr4: 0x0035_06f8, efer: 0xd01),
            idtBase: GuestVirtualAddress(kernel.idtBase), idtLimit: kernel.idtLimit,
            gdtBase: GuestVirtualAddress(0), gdtLimit: 0x57)
    }

    public func locateKernel() throws(DiscoveryError) -> WindowsKernel {
        try KernelLocator(physical: ram.physical).locate(processorTables)
    }

    /// A call that has just reached the power function's entry.
    /// - Parameter depth: how far below the thread's first call it is on its stack, in bytes.
    public func call(
        _ action: UInt32 = 5, _ state: UInt32 = 6, flags: UInt32 = 0, from mode: PreviousMode = .kernel,
        thread index: Int = 0, depth: UInt64 = 0, vcpu: Int = 0
    ) -> Registers {
        let thread = threads[index]
        let processor = kernel.processorRegion + UInt64(vcpu) * 0x400
        kernel.write(thread.object, at: processor + UInt64(SyntheticKernel.Layout.currentThread))
        kernel.write(mode.rawValue, at: thread.object + UInt64(SyntheticKernel.Layout.previousMode))
        var registers = Registers()
        // Upper halves are no part of 32-bit arguments.
        registers.rcx = 0xdead_beef_0000_0000 | UInt64(action)
        registers.rdx = 0x1234_5678_0000_0000 | UInt64(state)
        registers.r8 = 0xffff_ffff_0000_0000 | UInt64(flags)
        registers.rax = 0x1ab
        registers.rip = entry.rawValue
        registers.rsp = thread.stackSlot - depth
        registers.rflags = 0x246
        registers.cs = 0x10
        registers.ss = 0x18
        registers.gsBase = processor
        registers.control = processorTables.control
        kernel.write(Self.returnAddress, at: registers.rsp)
        return registers
    }

    /// Puts a `push rbx` into the kernel's code, behind the power function's first bytes, and lets the machine execute
    /// it when it is stepped over.
    public func addPush() {
        let address = entry.rawValue + 0x40
        kernel.write(UInt8(0x53), at: address)
        machine.onStep = { [unowned self] registers in
            guard registers.rip == address else {
                registers.rip &+= 4
                return
            }
            registers.rsp -= 8
            registers.rip += 1
            kernel.write(registers.rbx, at: registers.rsp)
        }
    }

    /// The registers just after a call has returned with a status.
    public func returned(from call: Registers, status: UInt32) -> Registers {
        var registers = call
        registers.rip = Self.returnAddress
        registers.rsp = call.rsp + 8
        registers.rax = 0xabcd_0000_0000_0000 | UInt64(status)
        return registers
    }

    /// What watches a call's return.
    public func watch(of call: Registers) -> BreakpointSite { .access(GuestVirtualAddress(call.rsp), length: 8) }
}
