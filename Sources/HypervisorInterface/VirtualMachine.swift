import GuestMemory
import X86

/// A point in time that a wait ends at. Of the host's monotonic clock.
public typealias Deadline = ContinuousClock.Instant

/// What tells one machine from another.
public struct MachineIdentity: Equatable, Sendable {
    /// The machine's name, where it has one.
    public var name: String?
    /// The machine's UUID, where it is not all zeroes.
    public var uuid: String?
    /// The hypervisor process's id, where it runs on this host.
    public var processID: Int32?
    /// When that process started, after the host's boot (`HostClock`). Only where the process is known to hold
    /// the guest's RAM.
    public var processStart: Duration?
    /// The hypervisor's name and version.
    public var hypervisor: String

    public init(
        name: String?, uuid: String?, processID: Int32?, processStart: Duration? = nil, hypervisor: String
    ) {
        self.name = name
        self.uuid = uuid
        self.processID = processID
        self.processStart = processStart
        self.hypervisor = hypervisor
    }
}

/// A machine that can be observed: its memory, its run state, what happens to it as a whole.
///
/// Nothing in this protocol stops or changes the guest.
public protocol VirtualMachine: AnyObject {
    var identity: MachineIdentity { get }

    /// The guest's RAM. Reads go straight to it.
    var memory: PhysicalMemory { get }

    /// How `memory` reaches the guest's RAM, for people.
    var memoryAccess: String { get }

    func runState() throws(HypervisorError) -> RunState

    /// Translation and system tables of each vCPU, in the vCPUs' order, without stopping the guest.
    func processorTables() throws(HypervisorError) -> [ProcessorTables]

    /// What the machine lacks since it woke from sleep, as a sentence for the user; nil where nothing is missing.
    /// Of use when the guest's kernel is back: until then its firmware may put things back.
    func lossByWaking() throws(HypervisorError) -> String?

    /// Descriptors of whoever uses the machine that `nextEvent` waits on too. One that can be read is reported at
    /// every wait until it is taken out or read; nothing is read from it here.
    var watchedDescriptors: [Int32] { get set }

    /// Waits for the next event, until `deadline` at the latest; nil when that passed.
    func nextEvent(until deadline: Deadline) throws(HypervisorError) -> MachineEvent?
}

extension VirtualMachine {
    /// A machine that wakes as it went to sleep.
    public func lossByWaking() throws(HypervisorError) -> String? { nil }
}

/// A place of interest that a machine can be told to stop at.
public enum BreakpointSite: Hashable, Sendable {
    /// Before the instruction at this address executes, in every address space.
    case execution(GuestVirtualAddress)
    /// After any access to one of `length` (1, 2, 4 or 8) bytes at this address.
    case access(GuestVirtualAddress, length: Int)
}

/// A machine that can be controlled: stopped, changed, resumed.
///
/// The engine does not call this directly: everything that changes a guest goes through `GuestEffects`.
public protocol ControllableMachine: VirtualMachine {
    /// How many sites can be set at once. Under KVM these are the four debug registers; what has more
    /// says four too, so that the same rules hold everywhere.
    var breakpointCapacity: Int { get }

    /// Opens the connections that control will need, without touching the guest.
    /// - Returns: whoever must be told of each effect before it happens.
    /// - Throws: `debuggerBusy`, `unsupported`.
    func prepareControl() throws(HypervisorError) -> any EffectWitness

    /// Takes control. Until then the machine is only observed.
    /// - Returns: whether this stopped a running machine, which `resume` starts again.
    func openControl() throws(HypervisorError) -> Bool

    /// Gives control back and leaves the run state as it is. Sites must be removed before.
    func closeControl() throws(HypervisorError)

    /// Goes on without whoever `prepareControl` returned. It is gone, or takes back now what is in force.
    func abandonWitness()

    /// Why control was lost, where that was not the machine's doing; nil otherwise.
    var lossOfControl: HypervisorError? { get }

    /// The number of vCPUs; known once control was opened.
    var vcpuCount: Int { get }

    /// No vCPU executes: a stop of ours, its operator's, or a state in which none does.
    var isStanding: Bool { get throws(HypervisorError) }

    /// A breakpoint or a watch has stopped the machine, and `nextEvent` has not said so yet.
    var hasPendingStop: Bool { get }

    /// Stops a running machine.
    /// - Returns: whether this call stopped it. If not, a breakpoint was faster, and its stop is the next event.
    func pause() throws(HypervisorError) -> Bool

    /// The machine was started by others while it stood, and something done to it has stopped it since. It is
    /// for `resume` to start it again.
    var hasStoppedUnasked: Bool { get }

    /// Starts the machine after a stop of ours.
    func resume() throws(HypervisorError)

    func registers(of vcpu: VCPU) throws(HypervisorError) -> Registers

    /// Writes those general registers, RIP and RFLAGS of `new` that differ from `old`.
    func setRegisters(of vcpu: VCPU, from old: Registers, to new: Registers) throws(HypervisorError)

    /// The vector registers that a function call may change; nil where the machine does not tell them.
    func vectorRegisters(of vcpu: VCPU) throws(HypervisorError) -> VectorRegisters?

    /// Writes all of them.
    func setVectorRegisters(of vcpu: VCPU, to vectors: VectorRegisters) throws(HypervisorError)

    /// Executes one instruction on one vCPU of a stopped machine while the others stand.
    func step(_ vcpu: VCPU) throws(HypervisorError)

    /// Lets the machine forget an access of a vCPU to a watched place, if it remembers one that nobody was told of. The
    /// machine stands.
    /// - Returns: whether the vCPU may have executed an instruction for it.
    func settleAccess(of vcpu: VCPU) throws(HypervisorError) -> Bool

    func insert(_ site: BreakpointSite) throws(HypervisorError)
    func remove(_ site: BreakpointSite) throws(HypervisorError)

    /// Writes bytes that the guest may execute. The machine stands still.
    func writeCode(_ bytes: [UInt8], at address: GuestPhysicalAddress) throws(HypervisorError)

    /// Whether `writeData` works while the machine runs.
    var writesDataWhileRunning: Bool { get }

    /// Writes bytes that the guest only reads as data. The machine may run, where `writesDataWhileRunning`.
    func writeData(_ bytes: [UInt8], at address: GuestPhysicalAddress) throws(HypervisorError)
}

extension ControllableMachine {
    /// A machine whose connections nobody else can close.
    public var lossOfControl: HypervisorError? { nil }

    /// A machine that is started only by those who stopped it, or stands whatever is done to it.
    public var hasStoppedUnasked: Bool { false }

    /// A machine whose threads' vector registers are not to be had.
    public func vectorRegisters(of vcpu: VCPU) throws(HypervisorError) -> VectorRegisters? { nil }

    public func setVectorRegisters(of vcpu: VCPU, to vectors: VectorRegisters) throws(HypervisorError) {}

    /// A machine whose witness cannot go away.
    public func abandonWitness() {}

    /// A machine that remembers nothing of an access.
    public func settleAccess(of vcpu: VCPU) throws(HypervisorError) -> Bool { false }

    /// A machine whose RAM is at hand.
    public var writesDataWhileRunning: Bool { true }
}
