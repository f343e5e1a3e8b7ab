import Foundation

/// An agent as it was built: a header, code, and data, position-independent, for the guest's memory.
///
/// The header's layout is `AGENT` of `Guest/agents/common/agent.h`.
public struct AgentImage: Equatable, Sendable {
    /// "VigAgnt1".
    static let magic: UInt64 = 0x3174_6e67_4167_6956
    static let version: UInt32 = 1
    static let headerSize = 0x100
    /// No agent is larger, in bytes.
    public static let maximumSize = 4 << 20

    /// What is to be written into the guest; the rest of `size` is zero.
    public let bytes: [UInt8]
    /// All of the memory that it needs, in bytes.
    public let size: Int
    /// Its start routine, which runs on a borrowed thread, in bytes from the image's start.
    public let start: Int
    /// Where an interrupt gate leads; nil where none does.
    public let gate: Range<Int>?
    /// What it shares with the host besides the header.
    public let data: Int
    /// Where its thread begins.
    public let threadEntry: Int

    /// - Throws: `malformed` where the bytes are no agent.
    public init(bytes: [UInt8]) throws(AgentError) {
        func word(_ offset: Int) -> Int {
            bytes[offset..<offset + 4].reversed().reduce(0) { $0 << 8 | Int($1) }
        }
        guard bytes.count >= Self.headerSize, word(0) | word(4) << 32 == Int(Self.magic),
            word(8) == Int(Self.version)
        else { throw .malformedImage("it does not begin as an agent does") }
        guard word(0x0c) == bytes.count, word(0x10) >= bytes.count, word(0x10) <= Self.maximumSize else {
            throw .malformedImage("its sizes contradict each other")
        }
        let (start, thread, data, gateStart, gateLength) =
            (word(0x14), word(0x24), word(0x20), word(0x18), word(0x1c))
        let code = Self.headerSize..<bytes.count
        guard code.contains(start), code.contains(thread), data < word(0x10), gateStart + gateLength <= bytes.count
        else { throw .malformedImage("something of it lies outside of it") }
        self.bytes = bytes
        size = word(0x10)
        self.start = start
        self.data = data
        threadEntry = thread
        gate = gateStart == 0 ? nil : gateStart..<gateStart + gateLength
    }

    /// One of the agents that are built with Vigil.
    /// - Throws: `malformed` where it is missing, or is none.
    public static func bundled(_ name: String) throws(AgentError) -> Self {
        guard let path = Bundle.module.path(forResource: "\(name).agent", ofType: nil),
            let data = FileManager.default.contents(atPath: path)
        else { throw .malformedImage("\(name).agent is missing from Vigil's resources") }
        return try Self(bytes: Array(data))
    }
}
