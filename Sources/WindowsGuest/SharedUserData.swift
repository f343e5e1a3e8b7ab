import GuestMemory

/// The page of data that Windows shares with every process (`_KUSER_SHARED_DATA`, Windows SDK's ntddk.h), as the
/// kernel sees it.
public struct SharedUserData {
    /// Where every x64 kernel has it.
    public static let address = StructureLayout.x64.sharedUserData

    /// Offsets of the structure, fixed since the versions named.
    enum Field {
        static let interruptTime: UInt64 = 0x008
        static let systemTime: UInt64 = 0x014
        /// Windows 10 and later; zero before.
        static let buildNumber: UInt64 = 0x260
        static let majorVersion: UInt64 = 0x26c
        static let minorVersion: UInt64 = 0x270
        /// Windows Vista and later.
        static let bootID: UInt64 = 0x2c4
        /// Windows 7 and later.
        static let interruptTimeBias: UInt64 = 0x3b0
    }

    /// The writer changes a time every 0.5 to 16 ms in a few nanoseconds: more failures in a row are garbage.
    static let attempts = 16

    let memory: KernelMemory
    /// Where this kernel has it.
    public let address: GuestVirtualAddress

    public init(of kernel: WindowsKernel) {
        memory = kernel.memory
        address = kernel.architecture.layout.sharedUserData
    }

    /// Time since the start in units of 100 ns, sleep included.
    public func interruptTime() throws(DiscoveryError) -> UInt64 {
        try time(at: Field.interruptTime, "InterruptTime")
    }

    /// UTC in units of 100 ns since 1601.
    public func systemTime() throws(DiscoveryError) -> UInt64 { try time(at: Field.systemTime, "SystemTime") }

    /// The part of the interrupt time that the system spent asleep, in units of 100 ns.
    public func interruptTimeBias() throws(DiscoveryError) -> UInt64 {
        try field(UInt64.self, at: Field.interruptTimeBias, "InterruptTimeBias")
    }

    /// Time that the system was awake, in units of 100 ns.
    public func unbiasedInterruptTime() throws(DiscoveryError) -> UInt64 {
        let bias = try interruptTimeBias()
        return try interruptTime() &- bias
    }

    /// Counts the boots of this installation, a resume from hibernation not among them.
    public func bootID() throws(DiscoveryError) -> UInt32 { try field(UInt32.self, at: Field.bootID, "BootId") }

    /// NtMajorVersion and NtMinorVersion: 6 and 1 for Windows 7, 10 and 0 for Windows 10 and 11.
    public func version() throws(DiscoveryError) -> (major: UInt32, minor: UInt32) {
        (
            try field(UInt32.self, at: Field.majorVersion, "NtMajorVersion"),
            try field(UInt32.self, at: Field.minorVersion, "NtMinorVersion")
        )
    }

    private func field<Value: FixedWidthInteger & BitwiseCopyable>(
        _ type: Value.Type, at offset: UInt64, _ name: String
    ) throws(DiscoveryError) -> Value {
        try reading("\(name) in the shared user data") { () throws(MemoryError) in
            try memory.load(type, at: address + offset)
        }
    }

    /// A KSYSTEM_TIME: LowPart, High1Time, High2Time. The kernel writes High2, Low, High1 in this order, so it
    /// is whole where both high parts, read in the other order, are equal.
    private func time(at offset: UInt64, _ name: String) throws(DiscoveryError) -> UInt64 {
        let start = address + offset
        for _ in 0..<Self.attempts {
            let (low, first, second) = try reading("\(name) in the shared user data") { () throws(MemoryError) in
                let first = try memory.load(UInt32.self, at: start + 4)
                let low = try memory.load(UInt32.self, at: start)
                return (low, first, try memory.load(UInt32.self, at: start + 8))
            }
            if first == second { return UInt64(first) << 32 | UInt64(low) }
        }
        throw .malformed("the two halves of \(name) never fit together", at: start)
    }
}
