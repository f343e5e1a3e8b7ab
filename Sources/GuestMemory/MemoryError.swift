/// Why guest memory could not be read or written.
public enum MemoryError: Error, Hashable, Sendable {
    /// No RAM of the guest is at this physical address.
    case notRAM(GuestPhysicalAddress)
    /// The page tables do not map this address now. `entry` is the entry that says so, `level` its level
    /// (1 is the last). "Not now" is not "never": Windows may have paged the page out.
    case notPresent(GuestVirtualAddress, entry: UInt64, level: Int)
    /// The entry that translates this address has bits set that the processor demands to be zero: an access
    /// would fault (Intel SDM volume 3, 4.7). The page tables are garbage, or being changed.
    case reservedBits(GuestVirtualAddress, entry: UInt64, level: Int)
    /// The address is not canonical, or runs past the end of the address space.
    case notCanonical(GuestVirtualAddress)
    /// More bytes were asked for, by a length found in the guest, than what is read there can be.
    case tooLong(GuestVirtualAddress, count: UInt64, maximum: UInt64)
    /// The host could not reach the guest's memory (the guest's process ended, or denied access).
    case unreachable(GuestPhysicalAddress, errno: Int32)
}

extension MemoryError {
    /// The page may come (back): it is worth trying again later.
    public var isNotPresent: Bool {
        if case .notPresent = self { true } else { false }
    }
}

extension MemoryError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .notRAM(let address): "no guest RAM at \(address)"
        case .notPresent(let address, let entry, let level):
            "page of \(address) is not present (level \(level) entry 0x\(String(entry, radix: 16)))"
        case .reservedBits(let address, let entry, let level):
            "page-table entry of \(address) has reserved bits set (level \(level) entry 0x\(String(entry, radix: 16)))"
        case .notCanonical(let address): "\(address) is not a canonical address"
        case .tooLong(let address, let count, let maximum):
            "\(count) bytes to read at \(address), where at most \(maximum) can be"
        case .unreachable(let address, let errno): "guest memory at \(address) is out of reach (errno \(errno))"
        }
    }
}
