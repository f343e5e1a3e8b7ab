import WindowsGuest
import X86

/// How a kernel's functions get their arguments, and what they leave on the stack.
public enum CallingConvention: Hashable, Sendable {
    /// Four arguments in RCX, RDX, R8 and R9, with home space for them above the return address, and a stack
    /// pointer 8 bytes off a multiple of 16 at a function's entry. Microsoft, "x64 calling convention".
    case x64
    /// All arguments on the stack above the return address; the function removes them. Microsoft, "__stdcall".
    case stdcall

    public init(_ architecture: KernelArchitecture) { self = architecture == .x64 ? .x64 : .stdcall }

    /// The width of what PUSH pushes, of a return address and of an argument, in bytes.
    public var wordSize: UInt64 { self == .x64 ? 8 : 4 }

    /// How far a function's return takes the stack pointer from where it was at the entry, in bytes.
    /// - Parameter arguments: how many the function has.
    public func returnDistance(arguments: Int) -> UInt64 {
        self == .x64 ? wordSize : wordSize &* (1 &+ UInt64(arguments))
    }

    private static let registers: [WritableKeyPath<Registers, UInt64> & Sendable] = [\.rcx, \.rdx, \.r8, \.r9]

    /// A thread's way into a function.
    struct Frame {
        /// With RIP at the function, and RSP at the return address.
        var registers: Registers
        /// What lies on the stack then, from the first that is pushed to the last, which is the return address.
        var words: [(place: UInt64, value: UInt64)]
    }

    /// Where a thread's stack pointer is when it has come back from a call that `frame` has made.
    func arrivalRSP(of thread: Registers) -> UInt64 {
        switch self {
        case .x64: base(thread.rsp) &- 0x28
        case .stdcall: base(thread.rsp) &- 8
        }
    }

    /// The registers and the words with which a thread makes a call. All of them lie below what it has on its stack.
    ///
    ///     x64, from the base down            stdcall
    ///     -0x08  a value that is pointed to  -0x04, -0x08  a value that is pointed to
    ///     -0x28  home space                  -0x0c …       the arguments, the last one first
    ///     -0x30  the return address          below them    the return address
    ///
    /// - Parameter returnAddress: where the call comes back to.
    func frame(of call: GuestCall, for thread: Registers, returningTo returnAddress: UInt64) -> Frame {
        let base = base(thread.rsp)
        var frame = Frame(registers: thread, words: [])
        frame.registers.rip = call.function.rawValue
        switch self {
        case .x64:
            for (argument, register) in zip(call.arguments, Self.registers) {
                switch argument {
                case .value(let value): frame.registers[keyPath: register] = value
                case .pointer(let value):
                    frame.registers[keyPath: register] = base &- 8
                    frame.words = [(base &- 8, value)]
                }
            }
            frame.words.append((base &- 0x30, returnAddress))
        case .stdcall:
            var arguments: [(place: UInt64, value: UInt64)] = []
            for (index, argument) in call.arguments.enumerated() {
                let place = base &- 8 &- 4 &* UInt64(call.arguments.count &- index)
                switch argument {
                case .value(let value): arguments.append((place, value & 0xffff_ffff))
                case .pointer(let value):
                    arguments.append((place, base &- 8))
                    frame.words = [(base &- 4, value >> 32), (base &- 8, value & 0xffff_ffff)]
                }
            }
            frame.words += arguments.reversed()
            frame.words.append((base &- 12 &- 4 &* UInt64(call.arguments.count), returnAddress))
        }
        frame.registers.rsp = frame.words[frame.words.count - 1].place
        return frame
    }

    /// Where below a thread's stack pointer a call begins: aligned as it would be at a function's entry.
    private func base(_ rsp: UInt64) -> UInt64 {
        switch self {
        case .x64: ((rsp &- 8) & ~0xf) &+ 8
        case .stdcall: rsp & ~3
        }
    }
}
