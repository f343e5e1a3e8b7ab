import GuestMemory
import Testing
import X86

@testable import Detours

@Suite("How a function of the guest is called") struct CallingConventionTests {
    static let function = GuestVirtualAddress(0x8260_1000)
    static let entry: UInt64 = 0x8270_0000

    /// What the function finds at an offset from its stack pointer.
    static func word(_ frame: CallingConvention.Frame, _ offset: UInt64) -> UInt64? {
        frame.words.first { $0.place == frame.registers.rsp + offset }?.value
    }

    @Test("stdcall: the return address, then the arguments from the first on; a value of 64 bits above them")
    func stdcall() throws {
        var thread = Registers()
        thread.rsp = 0x8a00_1f3c
        thread.rcx = 7
        let call = GuestCall(Self.function, [.value(0), .value(1), .pointer(to: 0 &- 300_000)])
        let frame = CallingConvention.stdcall.frame(of: call, for: thread, returningTo: Self.entry)
        #expect(frame.registers.rip == Self.function.rawValue && frame.registers.rcx == 7)
        #expect(Self.word(frame, 0) == Self.entry)
        #expect(Self.word(frame, 4) == 0 && Self.word(frame, 8) == 1)
        let pointer = try #require(Self.word(frame, 12))
        let low = try #require(frame.words.first { $0.place == pointer }?.value)
        let high = try #require(frame.words.first { $0.place == pointer + 4 }?.value)
        #expect(Int64(bitPattern: high << 32 | low) == -300_000)
        // Nothing of the thread's own is touched, and each word is pushed below the one before.
        #expect(frame.words.allSatisfy { $0.place + 4 <= thread.rsp && $0.value >> 32 == 0 })
        #expect(frame.words.map(\.place) == frame.words.map(\.place).sorted(by: >))
        // `ret 12` takes the return address and three arguments.
        #expect(CallingConvention.stdcall.arrivalRSP(of: thread) == frame.registers.rsp + 16)
        #expect(CallingConvention.stdcall.returnDistance(arguments: 3) == 16)
    }

    @Test("stdcall: where a thread comes back to does not depend on how many arguments it had")
    func arrival() {
        var thread = Registers()
        thread.rsp = 0x8a00_1f3e
        for count in 0...4 {
            let call = GuestCall(Self.function, .init(repeating: .value(1), count: count))
            let frame = CallingConvention.stdcall.frame(of: call, for: thread, returningTo: Self.entry)
            let distance = CallingConvention.stdcall.returnDistance(arguments: count)
            #expect(frame.registers.rsp + distance == CallingConvention.stdcall.arrivalRSP(of: thread))
            #expect(frame.registers.rsp % 4 == 0)
        }
    }

    @Test("x64: four registers, home space, and a stack pointer 8 bytes off a multiple of 16")
    func x64() {
        var thread = Registers()
        thread.rsp = 0xffff_8a00_0000_1f38
        let call = GuestCall(Self.function, [.value(1), .pointer(to: 99), .value(3), .value(4)])
        let frame = CallingConvention.x64.frame(of: call, for: thread, returningTo: Self.entry)
        #expect(frame.registers.rcx == 1 && frame.registers.r8 == 3 && frame.registers.r9 == 4)
        #expect(frame.words.first { $0.place == frame.registers.rdx }?.value == 99)
        #expect(frame.registers.rdx >= frame.registers.rsp + 40 && frame.registers.rdx + 8 <= thread.rsp)
        #expect(Self.word(frame, 0) == Self.entry && frame.registers.rsp % 16 == 8)
        #expect(CallingConvention.x64.arrivalRSP(of: thread) == frame.registers.rsp + 8)
    }
}
