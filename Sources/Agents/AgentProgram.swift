import GuestMemory
import HypervisorInterface

/// What an agent has to say.
public enum AgentReport: Equatable, Sendable {
    /// A page-table entry that matters to a watched page was changed.
    case translationChanged(TranslationChange)
    /// The agent's thread has not run for so long, by the guest's own clock or by the host's.
    case stalled(Duration)
    /// So many reports were lost, because nobody fetched them in time.
    case lost(UInt64)
}

/// A change of an entry that a watched page is translated by.
public struct TranslationChange: Hashable, Sendable {
    /// The watched page, or the first of those that the entry maps.
    public var page: GuestVirtualAddress
    /// 1 for the entry that maps a 4 KiB page, up to 4 (or 5) for the topmost.
    public var level: Int
    public var old: UInt64
    public var new: UInt64
    /// Behind the instruction that wrote it.
    public var writer: GuestVirtualAddress
    /// The vCPU that made it has not gone on yet.
    public var isAtOnce: Bool

    public init(
        page: GuestVirtualAddress, level: Int, old: UInt64, new: UInt64, writer: GuestVirtualAddress,
        isAtOnce: Bool = false
    ) {
        self.page = page
        self.level = level
        self.old = old
        self.new = new
        self.writer = writer
        self.isAtOnce = isAtOnce
    }
}

/// What one kind of agent is and does, on the host's side.
public protocol AgentProgram: AnyObject {
    /// Its name for people and in events: `heartbeat`, `pt-filter`.
    var name: String { get }
    var image: AgentImage { get }
    /// Whether it changes the kernel's code.
    var patchesCode: Bool { get }
    /// How long its thread sleeps between two rounds.
    var interval: Duration { get }

    /// How often it is asked for what it has found out.
    var collectInterval: Duration { get }

    /// Puts what the agent needs to know into the bytes that are about to be loaded.
    func prepare(_ bytes: inout [UInt8], at base: GuestVirtualAddress) throws(AgentError)

    /// Leads the guest's code to the loaded agent. The machine stands.
    func attach(_ memory: AgentMemory) throws(AgentError)

    /// Takes everything back that leads the guest's code to the agent. The machine stands.
    /// - Throws: where something still leads there; it may be tried again.
    func detach() throws(AgentError)

    /// The kernel's bytes that it has replaced.
    var ownPatches: [CodePatch.Place] { get }

    /// What it has found out since it was asked last. The guest may run.
    func collect(from memory: AgentMemory) throws(AgentError) -> [AgentReport]

    /// The guest was reset: nothing of it is there any more.
    func forget()
}

extension AgentProgram {
    public var patchesCode: Bool { false }
    public var collectInterval: Duration { .milliseconds(500) }
    public func attach(_ memory: AgentMemory) throws(AgentError) {}
    public func detach() throws(AgentError) {}
    public var ownPatches: [CodePatch.Place] { [] }
    public func forget() {}
}

/// A thread of the guest's own that says when it last ran: a guest whose scheduler stands still has no heartbeat.
public final class HeartbeatAgent: AgentProgram {
    public let name = "heartbeat"
    public let image: AgentImage
    public let interval = Duration.milliseconds(100)
    /// A gap of so long between two beats, by the guest's own clock, is reported.
    public static let longestGap = Duration.seconds(2)

    private var reported: UInt64 = 0

    public init() throws(AgentError) { image = try .bundled("heartbeat") }

    public func prepare(_ bytes: inout [UInt8], at base: GuestVirtualAddress) throws(AgentError) { reported = 0 }

    public func collect(from memory: AgentMemory) throws(AgentError) -> [AgentReport] {
        let gap: UInt64
        do throws(MemoryError) {
            // HEARTBEAT_DATA.LongestGap, in 100 ns.
            gap = try memory.memory.hardware.load(UInt64.self, at: memory.data + 8)
        } catch {
            throw .memory(error, doing: "reading the heartbeat")
        }
        guard gap > reported, gap > 10_000_000 * UInt64(Self.longestGap.components.seconds) else { return [] }
        reported = gap
        return [.stalled(.microseconds(Int64(clamping: gap / 10)))]
    }

    public func forget() { reported = 0 }
}
