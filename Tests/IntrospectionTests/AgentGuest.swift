import Agents
import GuestMemory
import HypervisorInterface
import Introspection
import TestSupport
import WindowsGuest
import X86

/// A session with an agent, in a fake guest whose agents' threads do as they are told whenever the machine runs.
final class AgentGuest {
    static let pool = FakeGuest.pool
    /// AGENT's fields in `Guest/agents/common/agent.h`.
    private enum Offset {
        static let stopWanted: UInt64 = 0x70
        static let mayLeave: UInt64 = 0x74
        static let stage: UInt64 = 0x78
    }

    let run: EngineRun
    let guest: FakeGuest
    let dispatcher: GuestVirtualAddress
    let functions: AgentFunctions
    let image: AgentImage
    /// Pages that are an agent's, from its start on to its end.
    private(set) var living: Set<UInt64> = []
    /// A thread leaves as soon as it is told to.
    var threadsLeave = true

    var machine: FakeMachine { guest.machine }

    init(_ options: SyntheticKernelOptions = .init(), vcpus: Int = 1) throws {
        guest = FakeGuest(options, vcpus: vcpus)
        guest.addPool(pages: 64)
        // Behind the function's end: `push rbx`.
        guest.kernel.write(UInt8(0x53), at: guest.kernel.address("KeDelayExecutionThread") + 8)
        let kernel = try guest.locateKernel()
        guard let dispatcher = try ServiceTable(of: kernel).dispatcher else {
            throw DiscoveryError.notFound("dispatcher")
        }
        self.dispatcher = dispatcher
        functions = try AgentFunctions(of: kernel)
        image = try AgentImage.bundled("heartbeat")
        run = EngineRun(guest)
        run.options.waiting = .delay
        run.options.agents = [.heartbeat]
        guest.machine.vectors = (0..<vcpus).map { _ in VectorRegisters() }
        guest.machine.onStep = { [unowned self] in execute(&$0) }
        guest.machine.onOperation = { [unowned self] operation, _ in if operation == .resume { runThreads() } }
    }

    private func word(_ base: UInt64, _ offset: UInt64) -> UInt32 {
        (try? guest.kernel.tables.memory.load(UInt32.self, at: GuestVirtualAddress(base + offset))) ?? .max
    }

    func isThere(_ base: UInt64 = pool) -> Bool {
        (try? guest.kernel.tables.memory.load(UInt64.self, at: GuestVirtualAddress(base))) == 0x3174_6e67_4167_6956
    }

    func bytes(_ base: UInt64 = pool) -> [UInt8] {
        let count = UInt64(image.size)
        return (try? guest.kernel.tables.memory.bytes(at: GuestVirtualAddress(base), count: count, maximum: count))
            ?? []
    }

    /// A thread was made for an agent.
    func startThread(_ base: UInt64 = pool) {
        living.insert(base)
        guest.kernel.write(UInt32(1), at: base + Offset.stage)
    }

    func forgetThreads() { living = [] }

    private func runThreads() {
        guard threadsLeave else { return }
        for base in living where word(base, Offset.stopWanted) != 0 && word(base, Offset.mayLeave) == 1 {
            if word(base, Offset.stopWanted) == 2 {
                guest.kernel.write(UInt64(0), at: base)
            } else {
                guest.kernel.write(UInt32(3), at: base + Offset.stage)
            }
            living.remove(base)
        }
    }

    /// Executes an instruction, if it is a push of a general register; of others only the end is known.
    private func execute(_ registers: inout Registers) {
        let pushes: [UInt8: KeyPath<Registers, UInt64>] = [
            0x50: \.rax, 0x51: \.rcx, 0x52: \.rdx, 0x53: \.rbx, 0x55: \.rbp, 0x56: \.rsi, 0x57: \.rdi,
        ]
        let opcode = try? guest.kernel.tables.memory.load(UInt8.self, at: GuestVirtualAddress(registers.rip))
        guard registers.rip != guest.entry.rawValue, let register = opcode.flatMap({ pushes[$0] }) else {
            registers.rip &+= 4
            return
        }
        registers.rsp -= 8
        registers.rip += 1
        guest.kernel.write(registers[keyPath: register], at: registers.rsp)
    }

    // MARK: What threads do

    /// A thread's registers where system calls are made.
    func systemCall(
        thread: Int = 3, vcpu: Int = 0, _ change: (inout Registers) -> Void = { _ in }
    ) -> Registers {
        var registers = guest.call(thread: thread, depth: 0x184, vcpu: vcpu)
        registers.rip = dispatcher.rawValue
        (registers.rbx, registers.r11, registers.rcx, registers.rdx) = (0xb, 0x11, 0xc, 0xd)
        change(&registers)
        return registers
    }

    /// The same thread when a call that it was sent off to make is over.
    func back(_ thread: Registers, _ rax: UInt64) -> Registers {
        var registers = thread
        registers.rip = guest.entry.rawValue
        registers.rsp = ((thread.rsp - 8) & ~0xf) + 8 - 0x28
        (registers.rax, registers.rcx, registers.rdx, registers.r8, registers.r9) = (rax, 1, 2, 3, 4)
        (registers.r10, registers.r11) = (5, 6)
        return registers
    }

    /// The event that one of these is.
    func stop(_ registers: @escaping @autoclosure () -> Registers, vcpu: Int = 0) -> (FakeMachine) -> MachineEvent? {
        { [unowned self] machine in
            let registers = registers()
            if registers.rip == guest.entry.rawValue, !machine.vectors.isEmpty {
                machine.vectors[vcpu].xmm3 = SIMD2(0xbad, 0xbad)
            }
            return machine.stop(vcpu, at: registers)
        }
    }

    /// Something to look at between two events.
    func look(_ body: @escaping (FakeMachine) -> Void) -> (FakeMachine) -> MachineEvent? {
        { machine in
            body(machine)
            return nil
        }
    }

    /// What it takes to deploy the agent, with one borrowed thread.
    func deployment(_ base: UInt64 = pool) -> [(FakeMachine) -> MachineEvent?] {
        [
            stop(self.systemCall()), stop(self.back(self.systemCall(), base)),
            { [unowned self] machine in
                startThread(base)
                return stop(self.back(self.systemCall(), 0))(machine)
            },
        ]
    }

    var isWatched: Bool { machine.sites.contains(.execution(dispatcher)) }
    var bugCheck: BreakpointSite { .execution(GuestVirtualAddress(guest.kernel.address("KeBugCheckEx"))) }

    /// What was reported, without addresses and times.
    var words: [String] {
        run.events.map { event in
            guard event.hasPrefix("agent ") else { return event }
            let kind = String(event.dropFirst("agent ".count).prefix { $0 != "(" })
            let way = ["zeroed", "byItself", "powerCall", "systemCall"].first { event.contains($0) }
            return way.map { "\(kind) \($0)" } ?? kind
        }
    }
}
