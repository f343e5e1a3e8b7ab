import GuestMemory
import HypervisorInterface
import X86

/// A machine that does what a test's script says, and keeps account of everything that is done to it.
///
/// It holds RAM and registers but executes nothing. What no correct caller may do (write to a running
/// machine, set a fifth breakpoint, resume a stop that is its operator's) is done all the same, and noted
/// in `violations`.
public final class FakeMachine {
    /// Something that was done to the machine, or that a witness was told of.
    public enum Action: Equatable, Sendable {
        case announced(Effect)
        case paused
        case resumed
        case inserted(BreakpointSite)
        case removed(BreakpointSite)
        case stepped(VCPU)
        case settled(VCPU)
        case wroteRegisters(VCPU, Registers)
        case wroteCode(GuestPhysicalAddress, [UInt8])
        case wroteData(GuestPhysicalAddress, [UInt8])
        case openedControl
        case closedControl
    }

    /// What can be told to fail.
    public enum Operation: Hashable, Sendable {
        case announce, prepare, open, close, pause, resume, insert, remove, step, setRegisters, writeCode, writeData
        case runState, tables
    }

    /// Who stopped the machine.
    enum Stopper { case us, breakpoint, others }

    public var identity = MachineIdentity(name: "fake", uuid: nil, processID: nil, hypervisor: "fake")
    public let ram: SyntheticRAM
    public var registers: [Registers]
    /// Of each vCPU; of a machine that does not tell them, none.
    public var vectors: [VectorRegisters] = []
    public var tables: [ProcessorTables] = []
    public private(set) var log: [Action] = []
    public private(set) var violations: [String] = []
    public private(set) var sites: Set<BreakpointSite> = []
    /// The most sites that were ever set at once.
    public private(set) var mostSites = 0
    public private(set) var state: RunState
    public private(set) var isControlled = false
    /// What happens one after the other; nil lets the wait's deadline pass. With nothing left, the wait is
    /// interrupted.
    public var script: [(FakeMachine) -> MachineEvent?] = []
    /// Errors that the next operations of a kind throw.
    public var failures: [Operation: [HypervisorError]] = [:]
    /// What one step does to a vCPU; by default it goes on to the next instruction.
    public var onStep: (inout Registers) -> Void = { $0.rip &+= 4 }
    /// Called before each operation: an event may come at any of them.
    public var onOperation: (Operation, FakeMachine) -> Void = { _, _ in }
    /// A breakpoint is faster than the next pause: this vCPU stands at it.
    public var stopBeforePause: VCPU?
    public var capacity = 4
    public var watchedDescriptors: [Int32] = []
    /// Why control was lost, if it was.
    public var lossOfControl: HypervisorError?
    public private(set) var hasAbandonedWitness = false
    public private(set) var hasStoppedUnasked = false
    public private(set) var hasPendingStop = false
    /// What it says that it lacks since it woke, and how often it was asked.
    public var lossAfterWake: String?
    public private(set) var looksAfterWake = 0
    /// Whether there is a way to the RAM of a running machine.
    public var writesDataWhileRunning = true
    private var stopper = Stopper.others

    public init(ram: SyntheticRAM, vcpus: Int = 1, state: RunState = .running) {
        self.ram = ram
        self.state = state
        registers = Array(repeating: Registers(), count: vcpus)
    }

    public func clearLog() { log = [] }

    /// What was done, without what was announced.
    public var actions: [Action] { log.filter { if case .announced = $0 { false } else { true } } }

    /// What witnesses were told.
    public var announcements: [Effect] {
        log.compactMap { if case .announced(let effect) = $0 { effect } else { nil } }
    }

    private func perform(_ operation: Operation) throws(HypervisorError) {
        onOperation(operation, self)
        guard var errors = failures[operation], !errors.isEmpty else { return }
        let error = errors.removeFirst()
        failures[operation] = errors
        throw error
    }

    private func demand(_ condition: Bool, _ rule: String) {
        if !condition { violations.append(rule) }
    }

    private var stands: Bool { !state.isRunning }

    // MARK: What the guest and its operator do

    /// A vCPU reaches a breakpoint.
    public func stop(_ vcpu: Int = 0, at registers: Registers) -> MachineEvent {
        self.registers[vcpu] = registers
        demand(sites.contains(.execution(GuestVirtualAddress(registers.rip))), "a stop where no breakpoint is")
        return stop(vcpu, .breakpoint)
    }

    /// A vCPU stops for a reason, with the registers that it has.
    public func stop(_ vcpu: Int, _ reason: StopReason) -> MachineEvent {
        state = .stoppedByDebugger
        stopper = .breakpoint
        return .stop(Stop(vcpu: VCPU(vcpu), reason: reason))
    }

    private func takePendingStop(_ vcpu: VCPU) -> MachineEvent {
        hasPendingStop = false
        return stop(vcpu.index, .breakpoint)
    }

    /// Others start the standing machine, and what Vigil does next stops it.
    public func startUnderVigil() {
        state = .paused
        stopper = .us
        hasStoppedUnasked = true
    }

    /// The machine's state changes without Vigil.
    public func become(_ state: RunState) {
        self.state = state
        stopper = .others
    }
}

extension FakeMachine: VirtualMachine {
    public var memory: PhysicalMemory { ram.physical }
    public var memoryAccess: String { "made up" }

    public func runState() throws(HypervisorError) -> RunState {
        try perform(.runState)
        return state
    }

    public func processorTables() throws(HypervisorError) -> [ProcessorTables] {
        try perform(.tables)
        return tables
    }

    public func lossByWaking() throws(HypervisorError) -> String? {
        looksAfterWake += 1
        return lossAfterWake
    }

    public func nextEvent(until deadline: Deadline) throws(HypervisorError) -> MachineEvent? {
        script.isEmpty ? .interrupted : script.removeFirst()(self)
    }
}

extension FakeMachine: ControllableMachine {
    private final class Witness: EffectWitness {
        private let machine: FakeMachine
        init(_ machine: FakeMachine) { self.machine = machine }

        func willPerform(_ effect: Effect) throws(HypervisorError) {
            try machine.perform(.announce)
            machine.log.append(.announced(effect))
        }
    }

    /// Somebody who is told of effects, which then stand in `log`.
    public func makeWitness() -> any EffectWitness { Witness(self) }

    public var breakpointCapacity: Int { capacity }
    public var vcpuCount: Int { registers.count }
    public var isStanding: Bool { stands }

    public func prepareControl() throws(HypervisorError) -> any EffectWitness {
        try perform(.prepare)
        demand(!isControlled, "control taken twice")
        return makeWitness()
    }

    public func openControl() throws(HypervisorError) -> Bool {
        try perform(.open)
        isControlled = true
        log.append(.openedControl)
        return stopByUs()
    }

    public func closeControl() throws(HypervisorError) {
        try perform(.close)
        demand(sites.isEmpty, "control given up with \(sites.count) breakpoints set")
        demand(stopper == .others || !stands, "control given up during a stop of ours, or of a breakpoint's")
        isControlled = false
        log.append(.closedControl)
    }

    public func abandonWitness() { hasAbandonedWitness = true }

    private func stopByUs() -> Bool {
        guard state.isRunning else { return false }
        state = .paused
        stopper = .us
        return true
    }

    public func pause() throws(HypervisorError) -> Bool {
        try perform(.pause)
        demand(!stands, "a pause of a machine that stands")
        if let vcpu = stopBeforePause {
            stopBeforePause = nil
            hasPendingStop = true
            script.insert({ $0.takePendingStop(vcpu) }, at: 0)
            state = .stoppedByDebugger
            stopper = .breakpoint
            return false
        }
        log.append(.paused)
        return stopByUs()
    }

    public func resume() throws(HypervisorError) {
        try perform(.resume)
        demand(stands, "a running machine resumed")
        demand(stopper != .others, "a stop resumed that is not ours: \(state)")
        log.append(.resumed)
        hasStoppedUnasked = false
        state = .running
    }

    public func registers(of vcpu: VCPU) throws(HypervisorError) -> Registers {
        demand(stands, "registers read of a running machine")
        return registers[vcpu.index]
    }

    public func setRegisters(of vcpu: VCPU, from old: Registers, to new: Registers) throws(HypervisorError) {
        try perform(.setRegisters)
        demand(stands, "registers written of a running machine")
        demand(registers[vcpu.index] == old, "registers written from others than they are")
        registers[vcpu.index] = new
        log.append(.wroteRegisters(vcpu, new))
    }

    public func vectorRegisters(of vcpu: VCPU) throws(HypervisorError) -> VectorRegisters? {
        demand(stands, "vector registers read of a running machine")
        return vectors.indices.contains(vcpu.index) ? vectors[vcpu.index] : nil
    }

    public func setVectorRegisters(of vcpu: VCPU, to new: VectorRegisters) throws(HypervisorError) {
        try perform(.setRegisters)
        demand(stands, "vector registers written of a running machine")
        vectors[vcpu.index] = new
    }

    public func settleAccess(of vcpu: VCPU) throws(HypervisorError) -> Bool {
        demand(stands, "an access of a running machine is settled")
        log.append(.settled(vcpu))
        return false
    }

    public func step(_ vcpu: VCPU) throws(HypervisorError) {
        try perform(.step)
        demand(stands, "a step of a running machine")
        let place = BreakpointSite.execution(GuestVirtualAddress(registers[vcpu.index].rip))
        demand(!sites.contains(place), "a step from a breakpoint that is set")
        onStep(&registers[vcpu.index])
        log.append(.stepped(vcpu))
    }

    public func insert(_ site: BreakpointSite) throws(HypervisorError) {
        try perform(.insert)
        demand(stands, "a breakpoint set in a running machine")
        demand(!sites.contains(site), "a breakpoint set twice")
        sites.insert(site)
        mostSites = max(mostSites, sites.count)
        demand(sites.count <= 4, "more than four breakpoints")
        log.append(.inserted(site))
    }

    public func remove(_ site: BreakpointSite) throws(HypervisorError) {
        try perform(.remove)
        demand(stands, "a breakpoint removed from a running machine")
        demand(sites.contains(site), "a breakpoint removed that is not set")
        sites.remove(site)
        log.append(.removed(site))
    }

    public func writeCode(_ bytes: [UInt8], at address: GuestPhysicalAddress) throws(HypervisorError) {
        try perform(.writeCode)
        demand(stands, "code written in a running machine")
        ram.store(bytes, at: address.rawValue)
        log.append(.wroteCode(address, bytes))
    }

    public func writeData(_ bytes: [UInt8], at address: GuestPhysicalAddress) throws(HypervisorError) {
        try perform(.writeData)
        demand(stands || writesDataWhileRunning, "data written in a running machine that has no way to it")
        ram.store(bytes, at: address.rawValue)
        log.append(.wroteData(address, bytes))
    }
}
