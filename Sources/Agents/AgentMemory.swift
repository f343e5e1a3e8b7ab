import GuestMemory
import HypervisorInterface
import WindowsGuest

/// An agent's memory in the guest.
///
/// Where it lies in physical memory is asked for at each access: Windows moves the pages of its pools.
public struct AgentMemory {
    /// The stages of `AGENT_STAGE` in `Guest/agents/common/agent.h`.
    public enum Stage: UInt32, Sendable {
        case loaded, running, draining, left, abandoned
    }

    /// What its thread is told by `Field.stopWanted`.
    enum StopWish: UInt32 {
        /// To leave; its memory is given back by others.
        case leave = 1
        /// To give its memory back, too.
        case leaveByItself = 2
        /// Set by the thread itself: it goes, and it is too late to tell it that its memory is its own to give back.
        case leaving = 3
    }

    /// The header's fields that are used after loading, in bytes from the start.
    enum Field: UInt64 {
        case magic = 0x00
        case lease = 0x6c
        case stopWanted = 0x70
        case mayLeave = 0x74
        case stage = 0x78
        case inside = 0x7c
        case event = 0x90
    }

    public let base: GuestVirtualAddress
    public let image: AgentImage
    let memory: KernelMemory
    let effects: GuestEffects

    public init(base: GuestVirtualAddress, image: AgentImage, memory: KernelMemory, effects: GuestEffects) {
        self.base = base
        self.image = image
        self.memory = memory
        self.effects = effects
    }

    public func contains(_ rip: UInt64) -> Bool { rip &- base.rawValue < UInt64(image.size) }

    /// Whether a processor there came by the gate, and is not counted yet, or not any more.
    func isInGate(_ rip: UInt64) -> Bool {
        guard let gate = image.gate else { return false }
        return (UInt64(gate.lowerBound)..<UInt64(gate.upperBound)).contains(rip &- base.rawValue)
    }

    /// Where the image's data, which it shares with the host, is.
    public var data: GuestVirtualAddress { base + UInt64(image.data) }

    func load<Value: FixedWidthInteger & BitwiseCopyable>(_ field: Field) throws(AgentError) -> Value {
        try access("reading the agent's state") { () throws(MemoryError) in
            try memory.hardware.load(Value.self, at: base + field.rawValue)
        }
    }

    /// The stage its thread says it is in; nil where that is none.
    public func stage() throws(AgentError) -> Stage? { Stage(rawValue: try load(.stage)) }

    /// How many have come by the gate and are in it.
    public func inside() throws(AgentError) -> Int32 { try load(.inside) }

    /// Whether the agent, and nothing else, is still at its place.
    func isThere() -> Bool { (try? load(.magic) as UInt64) == AgentImage.magic }

    /// Whether it begins with nothing but this instruction.
    func isHalted(_ instruction: UInt8) -> Bool {
        (try? load(.magic) as UInt64) == UInt64(instruction) &* 0x0101_0101_0101_0101
    }

    /// Nothing is to be taken for an agent there any more.
    func forgetMagic() throws(AgentError) { try writeData([UInt8](repeating: 0, count: 8), at: base) }

    func store(_ value: UInt32, in field: Field) throws(AgentError) {
        try writeData(withUnsafeBytes(of: value) { Array($0) }, at: base + field.rawValue)
    }

    /// Writes into the agent's data, page by page. The guest may run.
    public func writeData(_ bytes: [UInt8], at address: GuestVirtualAddress) throws(AgentError) {
        try write(bytes, at: address) { (part, physical) throws(HypervisorError) in
            try effects.writeData(part, at: physical)
        }
    }

    /// Writes bytes that are to be executed. The machine stands.
    public func writeCode(_ bytes: [UInt8], at address: GuestVirtualAddress) throws(AgentError) {
        try write(bytes, at: address) { (part, physical) throws(HypervisorError) in
            try effects.writeCode(part, at: physical)
        }
    }

    private func write(
        _ bytes: [UInt8], at address: GuestVirtualAddress,
        _ put: ([UInt8], GuestPhysicalAddress) throws(HypervisorError) -> Void
    ) throws(AgentError) {
        var rest = bytes[...]
        var next = address
        while !rest.isEmpty {
            let place = next
            let translation = try access("looking for the agent's memory") { () throws(MemoryError) in
                try memory.hardware.translate(place)
            }
            let part = rest.prefix(Int(min(translation.bytesToPageEnd, 4096)))
            do throws(HypervisorError) {
                try put(Array(part), translation.physical)
            } catch {
                throw .hypervisor(error)
            }
            rest = rest.dropFirst(part.count)
            next = next + UInt64(part.count)
        }
    }

    /// Whether its thread has left, or is about to, and leaves the memory to others.
    func hasSetOut() -> Bool {
        (try? load(.stopWanted) as UInt32) == StopWish.leaving.rawValue || (try? stage()) == .left
    }

    /// What it takes to let the agent leave by itself.
    /// - Parameter block: how its memory is given back.
    func trace(_ block: PoolBlock) throws(AgentError) -> AgentTrace {
        let header = try access("looking for the agent's memory") { () throws(MemoryError) in
            try memory.hardware.translate(base).physical
        }
        let gate = image.gate ?? 0..<0
        return AgentTrace(
            header: header, magic: AgentImage.magic, mayLeaveOffset: Int(Field.mayLeave.rawValue),
            stopWantedOffset: Int(Field.stopWanted.rawValue), stageOffset: Int(Field.stage.rawValue),
            leaveByItself: StopWish.leaveByItself.rawValue, leaving: StopWish.leaving.rawValue,
            left: Stage.left.rawValue,
            gate: base.rawValue + UInt64(gate.lowerBound)..<base.rawValue + UInt64(gate.upperBound), block: block)
    }

    /// Whether an allocator of the kernel's could have given this.
    func isKernelMemory() -> Bool {
        base.rawValue >> 63 == 1 && base.rawValue & 0xf == 0 && memory.pagingMode.isCanonical(base)
            && !base.rawValue.addingReportingOverflow(UInt64(image.size) + 0xfff).overflow
    }

    /// Whether all of it is memory of the kernel's that can be written and executed.
    /// - Returns: what is wrong with it; nil where nothing is.
    func flaw() -> String? {
        guard isKernelMemory() else { return "it is no address of the kernel's" }
        var page = base.page
        // It does not wrap around.
        while page.rawValue - base.page.rawValue < (base.rawValue & 0xfff) + UInt64(image.size) {
            guard let translation = try? memory.hardware.translate(page) else { return "a page of it is absent" }
            if !translation.isWritable { return "it cannot be written" }
            if !translation.isExecutable { return "no code can run in it" }
            if translation.rights.contains(.user) { return "programs can reach it" }
            page = page + 0x1000
        }
        return nil
    }

    private func access<Value>(
        _ doing: String, _ body: () throws(MemoryError) -> Value
    ) throws(AgentError) -> Value {
        do throws(MemoryError) { return try body() } catch { throw .memory(error, doing: doing) }
    }
}
