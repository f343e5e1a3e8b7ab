import GuestMemory

/// One gate of an interrupt descriptor table: of 16 bytes in long mode, else of 8. Intel SDM volume 3, 6.14.1 and 6.11.
public struct InterruptGate: Hashable, Sendable {
    public enum Kind: UInt8, Hashable, Sendable {
        case interrupt = 0xe
        case trap = 0xf
    }

    /// Where the vector's handler starts.
    public var handler: GuestVirtualAddress
    public var selector: UInt16
    public var kind: Kind
    /// The least privileged level that may reach it with INT n.
    public var privilegeLevel: UInt8
    /// The interrupt stack that it switches to, 1 to 7; 0 for none.
    public var stackIndex: UInt8

    /// - Returns: nil where the 16 bytes are no gate that an interrupt could go through: absent, of another
    ///   type, with bits set that must be zero, or without a code segment.
    public init?(low: UInt64, high: UInt64) {
        guard low & (1 << 47) != 0, low & (1 << 44) == 0, let kind = Kind(rawValue: UInt8(low >> 40 & 15)) else {
            return nil
        }
        // Bits 39 to 35 of the first half and 12 to 8 of the second's upper part must be zero.
        guard low & 0xf8_0000_0000 == 0, high & 0x1f00_0000_0000 == 0 else { return nil }
        selector = UInt16(truncatingIfNeeded: low >> 16)
        guard selector & ~3 != 0 else { return nil }
        handler = GuestVirtualAddress(low & 0xffff | (low >> 48) << 16 | (high & 0xffff_ffff) << 32)
        self.kind = kind
        privilegeLevel = UInt8(low >> 45 & 3)
        stackIndex = UInt8(low >> 32 & 7)
    }

    /// - Returns: nil where the 8 bytes of a 32-bit table are no interrupt or trap gate of 32 bits that is present.
    public init?(protectedMode gate: UInt64) {
        // Bits 39 to 32 of the eight bytes: the lower five are unused, the upper three must be zero.
        guard gate & (1 << 47) != 0, gate & (1 << 44) == 0, gate & 0xe0_0000_0000 == 0,
            let kind = Kind(rawValue: UInt8(gate >> 40 & 15))
        else { return nil }
        selector = UInt16(truncatingIfNeeded: gate >> 16)
        guard selector & ~3 != 0 else { return nil }
        handler = GuestVirtualAddress(gate & 0xffff | (gate >> 48) << 16)
        self.kind = kind
        privilegeLevel = UInt8(gate >> 45 & 3)
        stackIndex = 0
    }

    /// Reads the gate of a vector, as the paging mode's system has it.
    /// - Returns: nil where the table is too short for the vector, or what is there is no usable gate.
    public static func read(
        vector: UInt8, idtBase: GuestVirtualAddress, idtLimit: UInt32, in memory: some TranslatedMemory
    ) throws(MemoryError) -> Self? {
        guard memory.pagingMode.pointerSize == 8 else {
            let offset = UInt64(vector) * 8
            guard offset + 7 <= UInt64(idtLimit) else { return nil }
            return Self(protectedMode: try memory.load(UInt64.self, at: idtBase + offset))
        }
        let offset = UInt64(vector) * 16
        guard offset + 15 <= UInt64(idtLimit) else { return nil }
        return Self(
            low: try memory.load(UInt64.self, at: idtBase + offset),
            high: try memory.load(UInt64.self, at: idtBase + offset + 8))
    }
}
