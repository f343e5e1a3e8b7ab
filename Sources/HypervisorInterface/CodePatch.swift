import GuestMemory

/// A jump that was put over a function's first bytes, and the handler that it leads to: what it takes to put the
/// function back as it was.
public struct CodePatch: Equatable, Sendable {
    /// Replaced bytes that lie together in physical memory.
    public struct Place: Equatable, Sendable {
        public var physical: GuestPhysicalAddress
        public var original: [UInt8]
        /// As many bytes as `original`.
        public var patch: [UInt8]
        /// For bytes that must not change, not even back, while a processor stands in them: where processors have them.
        /// It has come through an interrupt's gate for what is there now.
        public var entrance: GuestVirtualAddress?

        public init(
            physical: GuestPhysicalAddress, original: [UInt8], patch: [UInt8], entrance: GuestVirtualAddress? = nil
        ) {
            self.physical = physical
            self.original = original
            self.patch = patch
            self.entrance = entrance
        }

        /// Whether the bytes must not change for a processor that stands there.
        public func isEntered(_ rip: UInt64) -> Bool {
            entrance.map { rip &- $0.rawValue < UInt64(original.count) } ?? false
        }
    }

    /// An instruction of the handler, and where in the function a processor goes on that stands on it.
    public struct Counterpart: Equatable, Sendable {
        /// In bytes from the handler's start.
        public var offset: Int
        public var address: GuestVirtualAddress

        public init(offset: Int, address: GuestVirtualAddress) {
            self.offset = offset
            self.address = address
        }
    }

    public var places: [Place]
    /// The handler's start, which is also where callers are stopped.
    public var handler: GuestVirtualAddress
    public var handlerPhysical: GuestPhysicalAddress
    /// In bytes.
    public var handlerLength: Int
    public var counterparts: [Counterpart]

    public init(
        places: [Place], handler: GuestVirtualAddress, handlerPhysical: GuestPhysicalAddress, handlerLength: Int,
        counterparts: [Counterpart]
    ) {
        self.places = places
        self.handler = handler
        self.handlerPhysical = handlerPhysical
        self.handlerLength = handlerLength
        self.counterparts = counterparts
    }

    /// Where a processor that stands in the handler has to go on; nil where it stands on none of its instructions.
    public func counterpart(of rip: UInt64) -> GuestVirtualAddress? {
        counterparts.first { handler.rawValue &+ UInt64($0.offset) == rip }?.address
    }
}

/// An agent in the guest: what it takes to let it leave by itself.
public struct AgentTrace: Equatable, Sendable {
    /// Where its header is.
    public var header: GuestPhysicalAddress
    /// What the header begins with.
    public var magic: UInt64
    /// 32-bit fields of the header, in bytes from its start: what tells it that it may go, what tells it to go, and
    /// where its thread is.
    public var mayLeaveOffset, stopWantedOffset, stageOffset: Int
    /// What the second is set to, for an agent that is to give its memory back itself; and what its thread sets it to
    /// when it goes without doing that: then it is too late to tell it.
    public var leaveByItself, leaving: UInt32
    /// What the third is when its thread has gone, and left its memory to others.
    public var left: UInt32
    /// The code of its gate in which a processor is not counted.
    public var gate: Range<UInt64>
    /// The memory.
    public var block: PoolBlock

    public init(
        header: GuestPhysicalAddress, magic: UInt64, mayLeaveOffset: Int, stopWantedOffset: Int, stageOffset: Int,
        leaveByItself: UInt32, leaving: UInt32, left: UInt32, gate: Range<UInt64>, block: PoolBlock
    ) {
        self.header = header
        self.magic = magic
        self.mayLeaveOffset = mayLeaveOffset
        self.stopWantedOffset = stopWantedOffset
        self.stageOffset = stageOffset
        self.leaveByItself = leaveByItself
        self.leaving = leaving
        self.left = left
        self.gate = gate
        self.block = block
    }
}
