import HypervisorInterface
import X86

/// Turns the stub's `g` packet into registers, and changes of registers into `P` packets.
struct RegisterCodec {
    private let description: TargetDescription

    init(_ description: TargetDescription) { self.description = description }

    private struct General: Sendable {
        var path: WritableKeyPath<Registers, UInt64> & Sendable
        /// In the target description of a 64-bit processor.
        var name: String
        /// In that of a processor without long mode (qemu-system-i386); nil where it has no such register.
        var shortName: String?
    }

    /// The registers that are written back.
    private static let general: [General] = [
        General(path: \.rax, name: "rax", shortName: "eax"), General(path: \.rbx, name: "rbx", shortName: "ebx"),
        General(path: \.rcx, name: "rcx", shortName: "ecx"), General(path: \.rdx, name: "rdx", shortName: "edx"),
        General(path: \.rsi, name: "rsi", shortName: "esi"), General(path: \.rdi, name: "rdi", shortName: "edi"),
        General(path: \.rbp, name: "rbp", shortName: "ebp"), General(path: \.rsp, name: "rsp", shortName: "esp"),
        General(path: \.r8, name: "r8"), General(path: \.r9, name: "r9"), General(path: \.r10, name: "r10"),
        General(path: \.r11, name: "r11"), General(path: \.r12, name: "r12"), General(path: \.r13, name: "r13"),
        General(path: \.r14, name: "r14"), General(path: \.r15, name: "r15"),
        General(path: \.rip, name: "rip", shortName: "eip"),
        General(path: \.rflags, name: "eflags", shortName: "eflags"),
    ]

    private func register(_ general: General) -> TargetDescription.Register? {
        description[general.name] ?? general.shortName.flatMap { description[$0] }
    }

    private var hasLongMode: Bool { description["rax"] != nil }

    func decode(_ packet: [UInt8]) throws(HypervisorError) -> Registers {
        func value(_ register: TargetDescription.Register?, _ name: String) throws(HypervisorError) -> UInt64 {
            guard let register, register.offset + register.size <= packet.count, register.size <= 8
            else { throw .unexpectedAnswer("no register \(name) in \(packet.count) bytes from the gdbstub") }
            var value: UInt64 = 0
            for index in (0..<register.size).reversed() {
                value = value << 8 | UInt64(packet[register.offset + index])
            }
            return value
        }
        func value(_ name: String) throws(HypervisorError) -> UInt64 { try value(description[name], name) }
        var registers = Registers()
        for general in Self.general where hasLongMode || general.shortName != nil {
            registers[keyPath: general.path] = try value(register(general), general.name)
        }
        registers.cs = UInt16(truncatingIfNeeded: try value("cs"))
        registers.ss = UInt16(truncatingIfNeeded: try value("ss"))
        registers.fsBase = try value("fs_base")
        registers.gsBase = try value("gs_base")
        registers.kernelGSBase = try value("k_gs_base")
        registers.control.cr0 = try value("cr0")
        registers.control.cr2 = try value("cr2")
        registers.control.cr3 = try value("cr3")
        registers.control.cr4 = try value("cr4")
        registers.control.cr8 = try value("cr8")
        registers.control.efer = try value("efer")
        return registers
    }

    struct Change: Equatable {
        var number: Int
        var value: UInt64
        var size: Int
    }

    func decodeVectors(_ packet: [UInt8]) throws(HypervisorError) -> VectorRegisters {
        func word(_ name: String, _ part: Int, of size: Int) throws(HypervisorError) -> UInt64 {
            guard let register = description[name], register.size == size,
                register.offset + register.size <= packet.count
            else { throw .unexpectedAnswer("no register \(name) in \(packet.count) bytes from the gdbstub") }
            let bytes = packet[(register.offset + 8 * part)...].prefix(min(8, size))
            return bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }
        var vectors = VectorRegisters()
        for (index, path) in VectorRegisters.all.enumerated() {
            vectors[keyPath: path] = SIMD2(
                try word("xmm\(index)", 0, of: 16), try word("xmm\(index)", 1, of: 16))
        }
        vectors.mxcsr = try word("mxcsr", 0, of: 4)
        return vectors
    }

    /// Numbers and bytes of all vector registers.
    func writes(of vectors: VectorRegisters) -> [(number: Int, bytes: [UInt8])] {
        func bytes(_ words: [UInt64]) -> [UInt8] { words.flatMap { word in withUnsafeBytes(of: word) { Array($0) } } }
        var writes = VectorRegisters.all.enumerated().compactMap { index, path in
            description["xmm\(index)"].map { register in
                (number: register.number, bytes: bytes([vectors[keyPath: path].x, vectors[keyPath: path].y]))
            }
        }
        if let register = description["mxcsr"] {
            writes.append((register.number, Array(bytes([vectors.mxcsr]).prefix(register.size))))
        }
        return writes
    }

    /// The general registers that differ.
    func changes(from old: Registers, to new: Registers) -> [Change] {
        Self.general.compactMap { general in
            let value = new[keyPath: general.path]
            guard old[keyPath: general.path] != value, let register = register(general) else { return nil }
            return Change(number: register.number, value: value, size: register.size)
        }
    }
}
