import Glibc
import GuestMemory

/// Guest RAM made up for a test, in this process's memory.
///
/// `PhysicalMemory` does not own what it reads, so the mapping stays until `unmap()` or the process's end.
public final class SyntheticRAM {
    public let base: GuestPhysicalAddress
    public let bytes: UnsafeMutableRawBufferPointer
    public let physical: PhysicalMemory
    private var nextPage: UInt64

    /// - Parameters:
    ///   - size: in bytes, a multiple of 4096.
    ///   - base: where the RAM starts in the guest's physical address space.
    public init(size: Int, base: UInt64 = 0) {
        self.base = GuestPhysicalAddress(base)
        let mapping = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        precondition(mapping != MAP_FAILED, "no memory for the test's RAM")
        bytes = UnsafeMutableRawBufferPointer(start: mapping, count: size)
        physical = PhysicalMemory(mapped: [
            RAMRegion(
                base: self.base, length: UInt64(size), hostAddress: UInt64(UInt(bitPattern: bytes.baseAddress!)))
        ])
        // The first page is left out, so that a zero address is never an allocated page.
        nextPage = base + 4096
    }

    /// Gives the memory back; nothing may read it any more.
    public func unmap() { munmap(bytes.baseAddress, bytes.count) }

    /// A zeroed page (or several that adjoin) that no other call returns.
    public func allocate(pages: Int = 1, alignment: UInt64 = 4096) -> UInt64 {
        nextPage = (nextPage + alignment - 1) & ~(alignment - 1)
        defer { nextPage += UInt64(pages) * 4096 }
        precondition(
            nextPage + UInt64(pages) * 4096 <= base.rawValue + UInt64(bytes.count), "the test's RAM is too small")
        return nextPage
    }

    /// What was allocated, from the base on, in bytes.
    public var used: UInt64 { nextPage - base.rawValue }

    /// Forgets what was allocated: all of it is zero again, and given out anew.
    public func reset() {
        let used = Int(nextPage - base.rawValue)
        memset(bytes.baseAddress!, 0, min(used, bytes.count))
        nextPage = base.rawValue + 4096
    }

    public func store<Value: FixedWidthInteger & BitwiseCopyable>(_ value: Value, at address: UInt64) {
        bytes.storeBytes(of: value.littleEndian, toByteOffset: Int(address - base.rawValue), as: Value.self)
    }

    public func load<Value: FixedWidthInteger & BitwiseCopyable>(_ type: Value.Type, at address: UInt64) -> Value {
        Value(littleEndian: bytes.loadUnaligned(fromByteOffset: Int(address - base.rawValue), as: type))
    }

    public func store(_ source: [UInt8], at address: UInt64) {
        let target = UnsafeMutableRawBufferPointer(rebasing: bytes[Int(address - base.rawValue)...])
        precondition(source.count <= target.count)
        target.copyBytes(from: source)
    }
}

/// A small, fast generator with a seed, so that a failure can be repeated (SplitMix64).
public struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    public init(seed: UInt64) { state = seed }

    public mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
}

/// This process, as the operating system numbers it.
public enum ProcessIdentity {
    public static var current: Int32 { getpid() }
}
