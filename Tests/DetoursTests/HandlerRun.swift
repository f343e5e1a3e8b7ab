import CHandlerHarness
import Glibc

@testable import Detours

/// The state of a processor, in the words of charness.h.
struct ProcessorState: Equatable, CustomStringConvertible {
    static let names =
        [
            "rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
            "rflags", "rsp", "mxcsr",
        ] + (0..<32).map { "xmm\($0 / 2)[\($0 % 2)]" }

    var words = [UInt64](repeating: 0, count: HARNESS_WORDS)

    var flags: UInt64 {
        get { words[HARNESS_FLAGS] }
        set { words[HARNESS_FLAGS] = newValue }
    }
    var rsp: UInt64 {
        get { words[HARNESS_RSP] }
        set { words[HARNESS_RSP] = newValue }
    }
    var mxcsr: UInt64 {
        get { words[HARNESS_MXCSR] }
        set { words[HARNESS_MXCSR] = newValue }
    }

    var description: String {
        zip(Self.names, words).map { "\($0)=\(String($1, radix: 16))" }.joined(separator: " ")
    }

    /// The names of what differs.
    func differences(from other: Self) -> [String] {
        zip(Self.names, zip(words, other.words)).filter { $0.1.0 != $0.1.1 }.map(\.0)
    }

    /// A different value in every register.
    static func distinct(flags: UInt64, mxcsr: UInt64 = 0x1f80, seed: UInt64 = 1) -> Self {
        var state = Self()
        for index in state.words.indices { state.words[index] = (seed &+ UInt64(index)) &* 0x9e37_79b9_7f4a_7c15 }
        state.flags = flags
        state.mxcsr = mxcsr
        return state
    }
}

/// The handler's machine code in executable memory of this process, with what it needs of a guest.
final class HandlerRun: @unchecked Sendable {
    typealias Call = harness_delay_call

    /// How the guest's unbiased time and its bias begin.
    static let startTime: UInt64 = 0x1_0000_0000
    static let startBias: UInt64 = 0x7777
    static let leaseLimit: UInt64 = 20_000_000

    /// What is saved, and the callee's frame, below the stack pointer at the entry.
    static let stackTop = 0x8000

    private let pages: UnsafeMutableRawPointer
    private let handler: DetourHandler
    /// The code, somewhere in a page.
    let code: UnsafeMutableRawPointer
    private let shared: UnsafeMutableRawPointer
    private let stack: UnsafeMutableRawPointer
    private(set) var calls: [Call] = []
    private var onDelay: (HandlerRun, Int) -> Void = { _, _ in }

    init(offset: Int = 0x740, delays: Bool = true, hasLease: Bool = true) {
        let size = 0x10000
        let mapping = mmap(
            nil, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        precondition(mapping != MAP_FAILED, "no executable memory for the test")
        pages = mapping!
        code = pages + offset
        shared = pages + 0x2000
        stack = pages + 0x4000
        var handler = DetourHandler()
        handler.set(.entry, to: harness_entry())
        handler.set(.sharedData, to: hasLease ? UInt64(UInt(bitPattern: shared)) : 0)
        handler.set(.leaseLimit, to: Self.leaseLimit)
        handler.set(.delayFunction, to: delays ? harness_delay_function() : 0)
        handler.set(.delayInterval, to: UInt64(bitPattern: -50_000))
        code.copyMemory(from: handler.bytes, byteCount: handler.bytes.count)
        self.handler = handler
        bias = Self.startBias
        time = Self.startTime + Self.startBias
    }

    deinit { munmap(pages, 0x10000) }

    private func place(_ data: DetourHandler.PublicData) -> UnsafeMutableRawPointer {
        code + handler.range(of: data).lowerBound
    }

    func address(of data: DetourHandler.PublicData) -> UInt64 { UInt64(UInt(bitPattern: place(data))) }

    subscript(wait slot: Int) -> UInt8 {
        get { place(.spinWait).load(fromByteOffset: slot, as: UInt8.self) }
        set { place(.spinWait).storeBytes(of: newValue, toByteOffset: slot, as: UInt8.self) }
    }

    var lease: UInt8 {
        get { place(.lease).load(as: UInt8.self) }
        set { place(.lease).storeBytes(of: newValue, as: UInt8.self) }
    }

    /// KUSER_SHARED_DATA.InterruptTime, in 100 ns: the bias included.
    var time: UInt64 {
        get { shared.load(fromByteOffset: 0x8, as: UInt64.self) }
        set { shared.storeBytes(of: newValue, toByteOffset: 0x8, as: UInt64.self) }
    }

    /// KUSER_SHARED_DATA.InterruptTimeBias.
    var bias: UInt64 {
        get { shared.load(fromByteOffset: 0x3b0, as: UInt64.self) }
        set { shared.storeBytes(of: newValue, toByteOffset: 0x3b0, as: UInt64.self) }
    }

    /// The code and its public data as they are now.
    var bytes: [UInt8] { Array(UnsafeRawBufferPointer(start: code, count: DetourHandler.length)) }

    /// What lies from the caller's stack pointer on, which is not the handler's.
    var callersStack: [UInt8] {
        get { Array(UnsafeRawBufferPointer(start: stack + Self.stackTop + 8, count: 256)) }
        set { (stack + Self.stackTop + 8).copyMemory(from: newValue, byteCount: min(256, newValue.count)) }
    }

    /// RSP at the entry: a call has pushed its return address on an aligned stack.
    var callersRSP: UInt64 { UInt64(UInt(bitPattern: stack + Self.stackTop)) + 8 }

    /// Sends a caller into a slot's stub and waits until it arrives at the entry.
    /// - Parameter onDelay: what the guest does during each delay, from 1 on.
    func run(
        _ state: ProcessorState, slot: Int, onDelay: @escaping (HandlerRun, Int) -> Void = { _, _ in }
    ) -> ProcessorState {
        self.onDelay = onDelay
        calls = []
        var result = ProcessorState()
        harness_run(
            state.words, &result.words, code + handler.stubOffset(slot: slot),
            { context, call in
                let run = Unmanaged<HandlerRun>.fromOpaque(context!).takeUnretainedValue()
                run.calls.append(call!.pointee)
                run.onDelay(run, run.calls.count)
            }, Unmanaged.passUnretained(self).toOpaque())
        return result
    }
}
