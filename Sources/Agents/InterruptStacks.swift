import GuestMemory
import WindowsGuest
import X86

/// Where vCPUs were that handle an interrupt on a stack of its own.
///
/// Such interrupts (NMI, machine check, double fault) come where all others are held back, so that what runs with
/// interrupts off can be interrupted by them, and then stands in no RIP.
enum InterruptStacks {
    /// `_KPCR.TssBase`, in every x64 kernel (public symbols).
    private static let tssBaseOffset: UInt64 = 0x08
    /// The first of seven addresses in a 64-bit TSS. Intel SDM volume 3, figure 8-11.
    private static let firstStack: UInt64 = 0x24
    /// Windows' interrupt stacks are not larger, in bytes.
    private static let largestStack: UInt64 = 0x8000
    /// The processor pushes SS, RSP, RFLAGS, CS, RIP, with the stack pointer aligned to 16. Intel SDM volume 3, 6.14.2.
    private static let ripBelowTop: UInt64 = 0x28

    /// - Parameter registers: of the vCPU, which is in the kernel.
    static func interruptedPlaces(_ registers: Registers, in memory: KernelMemory) -> [UInt64] {
        guard registers.privilegeLevel == 0, registers.gsBase >> 63 == 1,
            let tss = try? memory.load(UInt64.self, at: GuestVirtualAddress(registers.gsBase) + tssBaseOffset)
        else { return [] }
        var places: [UInt64] = []
        for index in 0..<7 {
            let slot = GuestVirtualAddress(tss) + firstStack + 8 * UInt64(index)
            guard let top = try? memory.load(UInt64.self, at: slot), top != 0,
                top &- registers.rsp &- 1 < largestStack,
                let rip = try? memory.load(UInt64.self, at: GuestVirtualAddress((top & ~0xf) &- ripBelowTop))
            else { continue }
            places.append(rip)
        }
        return places
    }
}
