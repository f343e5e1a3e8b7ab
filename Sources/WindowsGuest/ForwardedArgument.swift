import GuestMemory
import X86

/// Which functions a function calls with its own first argument, unchanged, as theirs.
///
/// The function is decoded along all of its paths. What is known is in which registers, and in which words of its own
/// stack frame, the lower half of the argument lies: at a place where paths meet, what holds on all of them. What is
/// not understood takes knowledge away and never adds any. Stores that do not go to the frame by its own registers are
/// taken not to go there.
struct ForwardedArgument {
    /// More than any function has that only passes something on.
    static let maximumInstructions = 1 << 12

    /// What holds before an instruction.
    private struct Knowledge: Equatable {
        /// Registers whose lower half is the argument, a bit each.
        var holders: UInt16 = 1 << 1
        /// Words of the frame that begin with it, in bytes from the stack pointer at the function's entry.
        var words: Set<Int64> = []
        /// Registers that hold an address in the frame, in the same count.
        var frame: [UInt8: Int64] = [4: 0]

        func holds(_ register: Register) -> Bool {
            register.kind == .general && register.bits >= 32 && holders & 1 << register.number != 0
        }

        func place(of operand: MemoryOperand) -> Int64? {
            guard let base = operand.base, base.bits == 64, operand.isField(of: base), base.kind == .general
            else { return nil }
            return frame[base.number].map { $0 &+ operand.displacement }
        }

        mutating func forget(_ register: Register) {
            guard register.kind == .general || register.kind == .highByte else { return }
            holders &= ~(1 << UInt16(register.number))
            frame[register.number] = nil
        }

        mutating func write(_ place: Int64, bytes: Int64, isArgument: Bool) {
            words = words.filter { $0 &+ 4 <= place || $0 >= place &+ bytes }
            if isArgument { words.insert(place) }
        }

        /// What holds on this way and on another one.
        func meeting(_ other: Self) -> Self {
            Self(
                holders: holders & other.holders, words: words.intersection(other.words),
                frame: frame.filter { other.frame[$0.key] == $0.value })
        }
    }

    /// Registers that a call may change: RAX, RCX, RDX, R8 to R11.
    private static let volatile: [UInt8] = [0, 1, 2, 8, 9, 10, 11]

    private let reader: CodeReader
    private let image: PEImage
    private let others: Set<GuestVirtualAddress>

    /// - Parameter others: functions that a jump to is a call of, not a part of the function.
    init(in kernel: WindowsKernel, others: Set<GuestVirtualAddress>) {
        reader = CodeReader(kernel.memory)
        image = kernel.image
        self.others = others
    }

    /// The functions that `function` calls so.
    /// - Throws: `unexpectedCode` where it is too long to follow.
    func receivers(of function: GuestVirtualAddress) throws(DiscoveryError) -> Set<GuestVirtualAddress> {
        var before: [GuestVirtualAddress: Knowledge] = [function: Knowledge()]
        var calls: [GuestVirtualAddress: GuestVirtualAddress] = [:]
        var pending = [function]
        while let address = pending.popLast() {
            guard before.count <= Self.maximumInstructions else {
                throw .unexpectedCode(function: "\(function)", at: function, "it is too long to follow")
            }
            guard let knowledge = before[address], image.isExecutable(address),
                let instruction = try decode(address)
            else { continue }
            let target = instruction.relativeTarget.map { GuestVirtualAddress($0) }
            let leaves = target.map { instruction.isUnconditionalJump && others.contains($0) } ?? false
            calls[address] = nil
            if let target, instruction.isCall || leaves, knowledge.holds(.rcx) { calls[address] = target }
            if leaves { continue }
            let after = Self.effect(of: instruction, on: knowledge)
            var next: [GuestVirtualAddress] = []
            if let target, !instruction.isCall { next.append(target) }
            if instruction.fallsThrough { next.append(GuestVirtualAddress(instruction.nextAddress)) }
            for place in next {
                let merged = before[place].map { $0.meeting(after) } ?? after
                if before[place] == merged { continue }
                before[place] = merged
                pending.append(place)
            }
        }
        return Set(calls.values)
    }

    private func decode(_ address: GuestVirtualAddress) throws(DiscoveryError) -> Instruction? {
        do throws(MemoryError) {
            return try reader.instruction(at: address)
        } catch {
            throw DiscoveryError(error, reading: "code at \(address)")
        }
    }

    private static func effect(of instruction: Instruction, on knowledge: Knowledge) -> Knowledge {
        var after = knowledge
        let (target, source) = (instruction.operands[0], instruction.operands[1])
        switch instruction.mnemonic {
        case .nop, .endbr64, .cli, .sti, .cmp, .test, .swapgs: break
        case .mov, .movsxd: move(source, to: target, &after, knowledge)
        case .lea:
            guard let register = target.register else { break }
            after.forget(register)
            if register.bits == 64, let place = source.memory.flatMap({ knowledge.place(of: $0) }) {
                after.frame[register.number] = place
            }
        case .push, .pushfq:
            let top = knowledge.frame[4].map { $0 &- 8 }
            after.frame[4] = top
            if let top {
                let isArgument = target.register.map { knowledge.holds($0) } ?? false
                after.write(top, bytes: 8, isArgument: isArgument && instruction.mnemonic == .push)
            }
        case .pop:
            if let register = target.register {
                after.forget(register)
                if let top = knowledge.frame[4], knowledge.words.contains(top), register.bits == 64 {
                    after.holders |= 1 << UInt16(register.number)
                }
            }
            after.frame[4] = knowledge.frame[4].map { $0 &+ 8 }
        case .add, .sub:
            let amount = source.immediate.map { Int64(bitPattern: $0) }
            let place = target.register.flatMap { $0.bits == 64 ? knowledge.frame[$0.number] : nil }
            change(target, &after, knowledge)
            if let register = target.register, let place, let amount {
                after.frame[register.number] = instruction.mnemonic == .add ? place &+ amount : place &- amount
            }
        case .and, .or, .xor, .shr, .movzx, .movsx: change(target, &after, knowledge)
        case .call:
            for register in volatile { after.forget(.general(register)) }
            // Below is the called function's own, and the four words above its return address are its home space.
            let end = knowledge.frame[4].map { $0 &+ 0x20 } ?? .max
            after.words = after.words.filter { $0 >= end }
        case _ where instruction.flow == .conditionalJump || instruction.flow == .unconditionalJump: break
        default:
            // Whatever it writes besides what it names is in these.
            for register in [Register.rax, .rcx, .rdx, .rsi, .rdi, .r11] { after.forget(register) }
            for operand in instruction.operands { change(operand, &after, knowledge) }
        }
        return after
    }

    private static func move(_ source: Operand, to target: Operand, _ after: inout Knowledge, _ before: Knowledge) {
        let isArgument: Bool
        if let register = source.register {
            isArgument = before.holds(register)
        } else if let memory = source.memory, memory.bits >= 32, let place = before.place(of: memory) {
            isArgument = before.words.contains(place)
        } else {
            isArgument = false
        }
        change(target, &after, before)
        if let register = target.register, register.kind == .general {
            if isArgument, register.bits >= 32 { after.holders |= 1 << UInt16(register.number) }
            if register.bits == 64, let from = source.register, from.bits == 64, from.kind == .general {
                after.frame[register.number] = before.frame[from.number]
            }
        } else if let memory = target.memory, let place = before.place(of: memory), memory.bits >= 32 {
            after.write(place, bytes: Int64(memory.bits / 8), isArgument: isArgument)
        }
    }

    /// An operand is written, nobody knows with what.
    private static func change(_ target: Operand, _ after: inout Knowledge, _ before: Knowledge) {
        if let register = target.register { after.forget(register) }
        if let memory = target.memory, let place = before.place(of: memory) {
            after.write(place, bytes: Int64(max(memory.bits, 8) / 8), isArgument: false)
        }
    }
}
