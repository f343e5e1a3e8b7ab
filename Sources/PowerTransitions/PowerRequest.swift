import GuestMemory
import WindowsGuest
import X86

/// The arguments of one call of `NtSetSystemPowerState(POWER_ACTION, SYSTEM_POWER_STATE, ULONG)`.
public struct PowerRequest: Equatable, Sendable {
    public var action: UInt32
    public var minimumState: UInt32
    public var flags: UInt32
    /// The arguments could be read; without that they are zero here, and nothing may be concluded from them.
    public var isReadable = true

    /// How many arguments the function has.
    public static let argumentCount = 3

    public init(action: UInt32, minimumState: UInt32, flags: UInt32) {
        self.action = action
        self.minimumState = minimumState
        self.flags = flags
    }

    /// A call whose arguments could not be read.
    public static let unreadable = {
        var request = PowerRequest(action: 0, minimumState: 0, flags: 0)
        request.isReadable = false
        return request
    }()

    /// The arguments as a 64-bit kernel passes them, seen at the function's first instruction: the low halves
    /// of RCX, RDX and R8 (Microsoft x64 calling convention).
    public init(x64 registers: Registers) {
        action = UInt32(truncatingIfNeeded: registers.rcx)
        minimumState = UInt32(truncatingIfNeeded: registers.rdx)
        flags = UInt32(truncatingIfNeeded: registers.r8)
    }

    /// The arguments as a 32-bit kernel passes them, seen at the function's first instruction: on the stack,
    /// above the return address (`stdcall`).
    /// - Throws: where the stack cannot be read; nothing may be concluded from a request that was not read.
    public init(x86 registers: Registers, memory: some TranslatedMemory) throws(MemoryError) {
        let stack = UInt64(UInt32(truncatingIfNeeded: registers.rsp))
        func argument(_ index: UInt64) throws(MemoryError) -> UInt32 {
            try memory.load(
                UInt32.self, at: GuestVirtualAddress(UInt64(UInt32(truncatingIfNeeded: stack + 4 + 4 * index))))
        }
        action = try argument(0)
        minimumState = try argument(1)
        flags = try argument(2)
    }

    /// What the request will do.
    public var transition: Transition { Transition(action: action, minimumState: minimumState) }

    /// Why every known kernel rejects these arguments, or nil where one of them may accept them.
    ///
    /// Only the checks that all kernels make count: a state from working to shutdown (1 to 6) and an action
    /// from 1 to 8 (8 since Windows 8). Calling a request off that a kernel accepts would let the guest go
    /// down unprepared; preparing for one that it rejects costs nothing.
    public var rejection: String? {
        guard isReadable else { return nil }
        if !(1...6).contains(minimumState) { return "no kernel accepts the state \(minimumState)" }
        if !(1...8).contains(action) { return "no kernel accepts the action \(action)" }
        return nil
    }
}

/// Who called the function.
public struct Caller: Equatable, Sendable {
    public enum Mode: String, Sendable {
        case kernel
        case user
        /// It could not be read; the call is taken for a request.
        case unknown
    }

    /// `KTHREAD.PreviousMode`.
    public var mode: Mode
    public var thread: GuestVirtualAddress
    public var threadID: UInt64?
    public var processID: UInt64?
    public var processName: String?
    public var returnAddress: GuestVirtualAddress

    public init(
        mode: Mode, thread: GuestVirtualAddress, threadID: UInt64?, processID: UInt64?, processName: String?,
        returnAddress: GuestVirtualAddress
    ) {
        self.mode = mode
        self.thread = thread
        self.threadID = threadID
        self.processID = processID
        self.processName = processName
        self.returnAddress = returnAddress
    }
}
