import GuestMemory
import X86

/// What a small function of the kernel returns, found by running its instructions on symbols.
///
/// Windows exports functions that return one field of an object and do nothing else, such as
/// `PsGetProcessId`: `mov rax, [rcx+2E8h]; ret`. Their code says where the field is, in every build.
public struct Accessor: Hashable, Sendable {
    /// What the chain of loads starts from.
    public enum Root: Hashable, Sendable {
        /// The function's first argument: in RCX, with 32 bits on the stack.
        case argument
        /// The pointer at this offset from GS, with 32 bits from FS: a field of the processor's control region (KPCR).
        case processorRegion(offset: Int64)
    }

    public var root: Root
    /// The displacements of the loads, one after another.
    public var loads: [Int64]
    /// What is added to the last value: for a function that returns an address inside an object.
    public var displacement: Int64

    /// The offset of the one field that is returned by value from the argument's object.
    public var argumentField: Int64? {
        root == .argument && loads.count == 1 && displacement == 0 ? loads[0] : nil
    }

    /// The offset of the part whose address is returned.
    public var argumentPart: Int64? {
        root == .argument && loads.isEmpty ? displacement : nil
    }
}

/// Finds out what a function returns by following its instructions.
///
/// Understood are straight-line functions of moves, loads, LEA and additions, with values kept in registers
/// or in the function's own stack frame, so that unoptimised code is understood, too. Anything else (a
/// branch, a call, a store elsewhere) is an error: a function that does more is not the accessor expected.
struct AccessorDecoder {
    static let maximumInstructions = 32

    private let reader: CodeReader
    private let function: String
    private let start: GuestVirtualAddress
    private var registers = [Accessor?](repeating: nil, count: 16)
    /// Values stored in the frame, by offset from the stack pointer at entry.
    private var frame: [Int64: Accessor] = [:]
    /// In bytes.
    private let wordSize: Int64
    /// What the processor's control region is reached by.
    private let region: Register
    private var stack: Int64 = 0
    /// RBP holds the stack pointer plus this.
    private var framePointer: Int64?

    private init(function: String, at start: GuestVirtualAddress, in memory: KernelMemory) {
        reader = CodeReader(memory)
        self.function = function
        self.start = start
        let argument = Accessor(root: .argument, loads: [], displacement: 0)
        switch KernelArchitecture(memory.pagingMode) {
        case .x64:
            (wordSize, region) = (8, .gs)
            registers[1] = argument
        case .x86:
            (wordSize, region) = (4, .fs)
            // Above the return address.
            frame[4] = argument
        }
    }

    /// What the exported function `name` returns.
    /// - Throws: `missingExport`, `notYet` where its code is not resident, `unexpectedCode` where it is more
    ///   than an accessor.
    static func decode(_ name: String, of kernel: WindowsKernel) throws(DiscoveryError) -> Accessor {
        let address = try kernel.export(name)
        guard kernel.image.isExecutable(address) else {
            throw .unexpectedCode(function: name, at: address, "it lies in no section of code")
        }
        var decoder = Self(function: name, at: address, in: kernel.memory)
        return try decoder.run()
    }

    private func unexpected(_ why: String) -> DiscoveryError {
        .unexpectedCode(function: function, at: start, why)
    }

    private mutating func run() throws(DiscoveryError) -> Accessor {
        var address = start
        var jumps = 0
        for _ in 0..<Self.maximumInstructions {
            let next = address
            let decoded = try reading("\(function) at \(start)") { () throws(MemoryError) in
                try reader.instruction(at: next)
            }
            guard let instruction = decoded else { throw unexpected("no instruction at \(address)") }
            if instruction.isReturn {
                guard let result = registers[0] else { throw unexpected("it returns nothing that could be followed") }
                return result
            }
            if instruction.isUnconditionalJump, let target = instruction.relativeTarget, jumps < 2 {
                jumps += 1
                address = GuestVirtualAddress(target)
                continue
            }
            guard instruction.flow == .sequential else {
                throw unexpected("it branches or calls (\(instruction.mnemonic))")
            }
            try execute(instruction)
            address = GuestVirtualAddress(instruction.nextAddress)
        }
        throw unexpected("it does not end within \(Self.maximumInstructions) instructions")
    }

    private mutating func execute(_ instruction: Instruction) throws(DiscoveryError) {
        let operands = instruction.operands
        switch instruction.mnemonic {
        case .nop, .endbr64, .endbr32:
            return
        case .xchg:
            // XCHG AX, AX is a NOP of two bytes.
            guard let register = operands[0].register, register == operands[1].register else {
                throw unexpected("it exchanges values")
            }
        case .push:
            stack = stack &- wordSize
            frame[stack] = operands[0].register.flatMap { value(of: $0) }
        case .pop:
            if let register = operands[0].register { set(register, to: frame[stack]) }
            stack = stack &+ wordSize
        case .leave:
            guard let framePointer else { throw unexpected("it leaves a frame that it has not entered") }
            stack = framePointer &+ wordSize
            self.framePointer = nil
        case .sub, .add:
            try add(instruction)
        case .mov, .movzx, .movsx, .movsxd:
            if let target = operands[0].memory {
                guard let slot = frameSlot(target) else { throw unexpected("it writes to memory") }
                frame[slot] = operands[1].register.flatMap { value(of: $0) }
            } else if let target = operands[0].register {
                if target.whole == .rsp, operands[1].register?.whole == .rbp, let framePointer {
                    stack = framePointer
                } else if target.whole == .rbp, operands[1].register?.whole == .rsp {
                    framePointer = stack
                    set(target, to: nil)
                } else if let source = operands[1].register {
                    // MOV EDI, EDI at a function's start is there to be patched.
                    if source != target { set(target, to: value(of: source)) }
                } else if let source = operands[1].memory {
                    set(target, to: try load(source))
                } else {
                    set(target, to: nil)
                }
            }
        case .lea:
            guard let target = operands[0].register, let source = operands[1].memory else { return }
            if target.whole == .rbp, source.isField(ofWhole: .rsp) {
                framePointer = stack &+ source.displacement
                set(target, to: nil)
            } else if let base = source.base, source.isField(of: base), var value = value(of: base) {
                value.displacement &+= source.displacement
                set(target, to: value)
            } else {
                set(target, to: nil)
            }
        case .and, .xor, .or, .test, .cmp:
            if let target = operands[0].register, instruction.mnemonic != .test, instruction.mnemonic != .cmp {
                set(target, to: nil)
            }
        default:
            throw unexpected("it does more than return a field (\(instruction.mnemonic))")
        }
    }

    private mutating func add(_ instruction: Instruction) throws(DiscoveryError) {
        guard let target = instruction.operands[0].register else { throw unexpected("it changes memory") }
        guard let immediate = instruction.operands[1].immediate else { return set(target, to: nil) }
        // An immediate is as wide as its register.
        let unused = Int64(64 &- min(64, max(8, Int64(target.bits))))
        let extended = (Int64(bitPattern: immediate) &<< unused) &>> unused
        let amount = extended &* (instruction.mnemonic == .sub ? -1 : 1)
        if target.whole == .rsp {
            stack = stack &+ amount
        } else if var value = value(of: target) {
            value.displacement &+= amount
            set(target, to: value)
        }
    }

    private func load(_ source: MemoryOperand) throws(DiscoveryError) -> Accessor? {
        if source.segment == region {
            guard source.base == nil, source.index == nil else { return nil }
            return Accessor(root: .processorRegion(offset: source.displacement), loads: [], displacement: 0)
        }
        if let slot = frameSlot(source) { return frame[slot] }
        guard let base = source.base, source.isField(of: base), var value = value(of: base) else { return nil }
        value.loads.append(value.displacement &+ source.displacement)
        value.displacement = 0
        return value
    }

    private func frameSlot(_ operand: MemoryOperand) -> Int64? {
        if operand.isField(ofWhole: .rsp) { return stack &+ operand.displacement }
        if let framePointer, operand.isField(ofWhole: .rbp) { return framePointer &+ operand.displacement }
        return nil
    }

    private func value(of register: Register) -> Accessor? {
        register.kind == .general ? registers[Int(register.number & 15)] : nil
    }

    private mutating func set(_ register: Register, to value: Accessor?) {
        guard register.kind == .general || register.kind == .highByte else { return }
        registers[Int(register.number & 15)] = value
        if register.whole == .rbp, value != nil { framePointer = nil }
    }
}
