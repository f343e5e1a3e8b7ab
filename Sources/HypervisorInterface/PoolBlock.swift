import GuestMemory

/// A block of the guest's pool that is Vigil's, and how it is given back: by one call of a function of the guest's.
public struct PoolBlock: Equatable, Sendable {
    public var address: GuestVirtualAddress
    /// In bytes.
    public var size: Int
    public var tag: UInt32
    /// ExFreePoolWithTag: takes address and tag, in RCX and RDX.
    public var free: GuestVirtualAddress

    public init(address: GuestVirtualAddress, size: Int, tag: UInt32, free: GuestVirtualAddress) {
        self.address = address
        self.size = size
        self.tag = tag
        self.free = free
    }

    public func contains(_ rip: UInt64) -> Bool { rip &- address.rawValue < UInt64(size) }
}

/// A block that nobody gives back if Vigil dies while a thread is on its way to a call, or back from it.
public enum OwedBlock: Equatable, Sendable {
    /// The one that the call returns: its address here is not known yet.
    case result(PoolBlock)
    /// It is somebody else's once the call has succeeded.
    case unlessSuccessful(PoolBlock)
    /// The call is made to give it back.
    case unlessCalled(PoolBlock)

    /// What is owed as long as the call has not been made.
    public var beforeCall: PoolBlock? {
        switch self {
        case .result: nil
        case .unlessSuccessful(let block), .unlessCalled(let block): block
        }
    }

    /// What is owed when the call has come back.
    /// - Parameter result: RAX.
    public func afterCall(_ result: UInt64) -> PoolBlock? {
        switch self {
        case .result(var block):
            block.address = GuestVirtualAddress(result)
            // What is no address of the kernel's half is no block.
            return result >> 63 == 1 ? block : nil
        // NTSTATUS: negative is an error.
        case .unlessSuccessful(let block): return Int32(truncatingIfNeeded: result) < 0 ? block : nil
        case .unlessCalled: return nil
        }
    }
}
