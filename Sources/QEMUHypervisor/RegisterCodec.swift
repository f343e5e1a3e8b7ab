import HypervisorInterface
import X86

/// Turns the stub's `g` packet into registers, and changes of registers into `P` packets.
struct RegisterCodec {
    private let description: TargetDescription

    init(_ description: TargetDescription) { self.description = description }

    /// The registers that are written back, with their names in the target description.
    private static let general: [(String, WritableKeyPath<Registers, UInt64> & Sendable)] = [
        ("rax", \.rax), ("rbx", \.rbx), ("rcx", \.rcx), ("rdx", \.rdx), ("rsi", \.rsi), ("rdi", \.rdi),
        ("rbp", \.rbp), ("rsp", \.rsp), ("r8", \.r8), ("r9", \.r9), ("r10", \.r10), ("r11", \.r11),
        ("r12", \.r12), ("r13", \.r13), ("r14", \.r14), ("r15", \.r15), ("rip", \.rip), ("eflags", \.rflags),
    ]

    func decode(_ packet: [UInt8]) throws(HypervisorError) -> Registers {
        func value(_ name: String) throws(HypervisorError) -> UInt64 {
            guard let register = description[name], register.offset + register.size <= packet.count,
                register.size <= 8
            else { throw .unexpectedAnswer("no register \(name) in \(packet.count) bytes from the gdbstub") }
            var value: UInt64 = 0
            for index in (0..<register.size).reversed() {
                value = value << 8 | UInt64(packet[register.offset + index])
            }
            return value
        }
        var registers = Registers()
        for (name, path) in Self.general { registers[keyPath: path] = try value(name) }
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
        Self.general.compactMap { name, path in
            guard old[keyPath: path] != new[keyPath: path], let register = description[name] else { return nil }
            return Change(number: register.number, value: new[keyPath: path], size: register.size)
        }
    }
}
