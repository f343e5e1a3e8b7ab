import GuestMemory
import HypervisorInterface
import WindowsGuest
import X86

/// A `push` of a general register in the guest's own code.
///
/// Stepped over with that register set, it puts a value on a thread's stack without a write of Vigil's. It
/// need not be an instruction of the function that it lies in: nothing but this one byte executes.
public struct PushInstruction: Equatable, Sendable {
    /// Opcodes 50 to 57 (Intel SDM volume 2, PUSH), without the one of RSP.
    private static let registers: [UInt8: WritableKeyPath<Registers, UInt64> & Sendable] = [
        0x50: \.rax, 0x51: \.rcx, 0x52: \.rdx, 0x53: \.rbx, 0x55: \.rbp, 0x56: \.rsi, 0x57: \.rdi,
    ]

    public let address: GuestVirtualAddress
    let opcode: UInt8

    var register: WritableKeyPath<Registers, UInt64> & Sendable { Self.registers[opcode]! }

    /// The first one at or after a function's entry, on the same page: that is as present as the function.
    public init?(near function: GuestVirtualAddress, in memory: KernelMemory) {
        let count = 4096 - function.rawValue & 4095
        guard let bytes = try? memory.hardware.bytes(at: function, count: count, maximum: 4096),
            let index = bytes.firstIndex(where: { Self.registers[$0] != nil })
        else { return nil }
        address = function + UInt64(index)
        opcode = bytes[index]
    }
}
