import GuestMemory
import X86

/// Which functions a function calls with its own first argument, unchanged, as theirs.
///
/// The function is decoded along all of its paths. What is known is in which registers, and in which words of its own
/// stack frame, the lower half of the argument lies: at a place where paths meet, what holds on all of them. What is
/// not understood takes knowledge away and never adds any. Stores that do not go to the frame by its own registers are
/// taken not to go there. On x86 the argument is on the stack, and so is what is passed on.
struct ForwardedArgument {
    /// More than any function has that only passes something on.
    static let maximumInstructions = 1 << 12

    /// What holds before an instruction.
    private struct Knowledge: Equatable {
        /// Registers whose lower half is the argument, a bit each.
        var holders: UInt16
        /// Words of the frame that begin with it, in bytes from the stack pointer at the function's entry.
        var words: Set<Int64>
        /// Registers that hold an address in the frame, in the same count.
        var frame: [UInt8: Int64] = [4: 0]

        /// At the function's entry.
        init(_ architecture: KernelArchitecture) {
            holders = architecture == .x64 ? 1 << 1 : 0
            // Above the return address.
            words = architecture == .x86 ? [4] : []
        }

        /// The function that is called now is given the argument as its first.
        func isPassedOn(_ architecture: KernelArchitecture) -> Bool {
            switch architecture {
            case .x64: holds(.rcx)
            case .x86: frame[4].map { words.contains($0) } ?? false
            }
        }

        func holds(_ register: Register) -> Bool {
            register.kind == .general && register.bits >= 32 && holders & 1 << register.number != 0
        }

        func place(of operand: MemoryOperand) -> Int64? {
            guard let base = operand.base, base.bits >= 32, operand.isField(of: base), base.kind == .general
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
            var common = self
            common.holders &= other.holders
            common.words.formIntersection(other.words)
            common.frame = frame.filter { other.frame[$0.key] == $0.value }
            return common
        }
    }

    /// Registers that a call may change: RAX, RCX, RDX, R8 to R11.
    private static let volatile: [UInt8] = [0, 1, 2, 8, 9, 10, 11]
    /// On x86 a called function takes its arguments off the stack, and how many is not known: the stack pointer is
    /// counted from here then, below anything of the frame.
    private static let unknownTop: Int64 = -(1 << 24)

    private let reader: CodeReader
    private let image: PEImage
    private let architecture: KernelArchitecture
    /// How wide a register and a word of the stack are, in bits.
    private let width: UInt16
    private let others: Set<GuestVirtualAddress>

    /// - Parameter others: functions that a jump to is a call of, not a part of the function.
    init(in kernel: WindowsKernel, others: Set<GuestVirtualAddress>) {
        reader = CodeReader(kernel.memory)
        image = kernel.image
        architecture = kernel.architecture
        width = architecture == .x64 ? 64 : 32
        self.others = others
    }

    /// The functions that `function` calls so.
    /// - Throws: `unexpectedCode` where it is too long to follow.
    func receivers(of function: GuestVirtualAddress) throws(DiscoveryError) -> Set<GuestVirtualAddress> {
        var before: [GuestVirtualAddress: Knowledge] = [function: Knowledge(architecture)]
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
            if let target, passesOn(knowledge, isJump: leaves), instruction.isCall || leaves { calls[address] = target }
            if leaves { continue }
            let after = effect(of: instruction, on: knowledge)
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

    /// - Parameter isJump: the function is left by a jump, with its own return address on top of the stack.
    private func passesOn(_ knowledge: Knowledge, isJump: Bool) -> Bool {
        guard isJump, architecture == .x86 else { return knowledge.isPassedOn(architecture) }
        return knowledge.frame[4].map { knowledge.words.contains($0 &+ 4) } ?? false
    }

    private func effect(of instruction: Instruction, on knowledge: Knowledge) -> Knowledge {
        var after = knowledge
        let (target, source) = (instruction.operands[0], instruction.operands[1])
        switch instruction.mnemonic {
        case .nop, .endbr64, .endbr32, .cli, .sti, .cmp, .test, .swapgs: break
        case .mov, .movsxd: move(source, to: target, &after, knowledge)
        case .lea:
            guard let register = target.register else { break }
            after.forget(register)
            if register.bits == width, let place = source.memory.flatMap({ knowledge.place(of: $0) }) {
                after.frame[register.number] = place
            }
        case .push, .pushfq, .pushfd:
            let word = Int64(width / 8)
            let start = knowledge.frame[4] ?? (architecture == .x86 ? Self.unknownTop : nil)
            let top = start.map { $0 &- word }
            after.frame[4] = top
            if let top {
                let isArgument = instruction.mnemonic == .push && isArgument(target, knowledge)
                after.write(top, bytes: word, isArgument: isArgument)
            }
        case .pop:
            if let register = target.register {
                after.forget(register)
                if let top = knowledge.frame[4], knowledge.words.contains(top), register.bits == width {
                    after.holders |= 1 << UInt16(register.number)
                }
            }
            after.frame[4] = knowledge.frame[4].map { $0 &+ Int64(width / 8) }
        case .leave:
            // mov esp, ebp; pop ebp.
            after.forget(.rbp)
            after.frame[4] = knowledge.frame[5].map { $0 &+ Int64(width / 8) }
        case .add, .sub:
            let unused = Int64(64 - width)
            let amount = source.immediate.map { (Int64(bitPattern: $0) &<< unused) &>> unused }
            let place = target.register.flatMap { $0.bits == width ? knowledge.frame[$0.number] : nil }
            change(target, &after, knowledge)
            if let register = target.register, let place, let amount {
                after.frame[register.number] = instruction.mnemonic == .add ? place &+ amount : place &- amount
            }
        case .and, .or, .xor, .shr, .movzx, .movsx: change(target, &after, knowledge)
        case .call:
            for register in Self.volatile { after.forget(.general(register)) }
            if architecture == .x86 {
                // The words that were pushed are the called function's; those above the return address may be this
                // one's to use again, but are not changed by anyone else.
                after.words = after.words.filter { $0 >= 0 }
                after.frame[4] = Self.unknownTop
                break
            }
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

    /// What an operand says is the argument.
    private func isArgument(_ source: Operand, _ before: Knowledge) -> Bool {
        if let register = source.register { return before.holds(register) }
        guard let memory = source.memory, memory.bits >= 32, let place = before.place(of: memory) else { return false }
        return before.words.contains(place)
    }

    private func move(_ source: Operand, to target: Operand, _ after: inout Knowledge, _ before: Knowledge) {
        let isArgument = isArgument(source, before)
        change(target, &after, before)
        if let register = target.register, register.kind == .general {
            if isArgument, register.bits >= 32 { after.holders |= 1 << UInt16(register.number) }
            if register.bits == width, let from = source.register, from.bits == width, from.kind == .general {
                after.frame[register.number] = before.frame[from.number]
            }
        } else if let memory = target.memory, let place = before.place(of: memory), memory.bits >= 32 {
            after.write(place, bytes: Int64(memory.bits / 8), isArgument: isArgument)
        }
    }

    /// An operand is written, nobody knows with what.
    private func change(_ target: Operand, _ after: inout Knowledge, _ before: Knowledge) {
        if let register = target.register { after.forget(register) }
        if let memory = target.memory, let place = before.place(of: memory) {
            after.write(place, bytes: Int64(max(memory.bits, 8) / 8), isArgument: false)
        }
    }
}
