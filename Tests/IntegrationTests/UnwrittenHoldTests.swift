import BundledGuest
import Detours
import Foundation
import GuestMemory
import HypervisorInterface
import Introspection
import QEMUHypervisor
import Testing
import WindowsGuest
import X86

extension Integration {
    /// A caller that waits in the guest's own delay function: what that writes, and what the guest's own check of
    /// its code, slack space and tables says.
    @Suite(.serialized)
    struct UnwrittenHoldTests {
        /// All RAM of a guest that stands, region by region.
        private func contents(_ machine: QEMUMachine) throws -> [[UInt8]] {
            try machine.memory.regions.map { region in
                try [UInt8](unsafeUninitializedCapacity: Int(region.length)) { buffer, count in
                    let all = UnsafeMutableRawBufferPointer(buffer)
                    while count < all.count {
                        let part = UnsafeMutableRawBufferPointer(rebasing: all[count..<min(count + 1 << 20, all.count)])
                        try machine.memory.read(at: region.base + UInt64(count), into: part)
                        count += part.count
                        // Whatever is asked of QEMU is also a sign of life for the guardian.
                        _ = try machine.runState()
                    }
                }
            }
        }

        /// Where two contents differ, as physical addresses.
        private func differences(_ before: [[UInt8]], _ after: [[UInt8]], _ machine: QEMUMachine) -> Set<UInt64> {
            var found: Set<UInt64> = []
            for (index, region) in machine.memory.regions.enumerated() {
                let (old, new) = (before[index], after[index])
                for page in stride(from: 0, to: old.count, by: 4096) {
                    let order = old.withUnsafeBytes { old in
                        new.withUnsafeBytes { memcmp(old.baseAddress! + page, $0.baseAddress! + page, 4096) }
                    }
                    if order == 0 { continue }
                    for offset in page..<page + 4096 where old[offset] != new[offset] {
                        found.insert(region.base.rawValue + UInt64(offset))
                    }
                }
            }
            return found
        }

        /// The next stop at the function's entry, and the registers of who stands there.
        private func arrival(_ machine: QEMUMachine, at entry: GuestVirtualAddress) throws -> (VCPU, Registers) {
            let deadline = ContinuousClock.now + .seconds(60)
            while ContinuousClock.now < deadline {
                guard case .stop(let stop)? = try machine.nextEvent(until: deadline) else { continue }
                let registers = try machine.registers(of: stop.vcpu)
                if registers.rip == entry.rawValue { return (stop.vcpu, registers) }
            }
            throw HypervisorError.timedOut(waitingFor: "a caller")
        }

        @Test("All RAM before and after sending a caller off, and taking it back: only its own pushes differ")
        func noByte() throws {
            var configuration = GuestConfiguration.tested
            configuration.memory = 64
            let guest = try BundledGuestMachine.ready(configuration)
            try guest.console.run("refuse on")
            try guest.console.run("guard on")
            let machine = try QEMUMachine(
                QEMUTarget(guest.operatorSocket), guardianCommand: [VigilProcess.path, "guardian"])
            let survey = try GuestSurvey(machine, patterns: [])
            let effects = GuestEffects(machine: machine)
            let detour = PatchlessDetour(
                entry: survey.powerFunction.address, effects: effects, debugRegisters: DebugRegisterTable(effects),
                memory: survey.kernel.memory, waiting: .delay, slack: nil, means: survey.means)
            var failure: (any Error)?
            try effects.takeControl { () throws(HypervisorError) in
                do { try detour.arm() } catch { failure = error }
            }
            if let failure { throw failure }
            let call = try guest.console.start("power kernel 5 6 0")

            let (vcpu, registers) = try arrival(machine, at: survey.powerFunction.address)
            let before = try contents(machine)
            let holder = try detour.hold(vcpu, registers, for: .milliseconds(100))
            // Below the stack pointer, where whatever the caller calls next writes too: the interval and the return
            // address; with 32 bits the arguments between them, too.
            let is32Bit = GuestConfiguration.is32Bit
            let depth: UInt64 = is32Bit ? 0x18 : 0x30
            let places: [Range<UInt64>] = is32Bit ? [0x00..<0x18] : [0x00..<0x08, 0x28..<0x30]
            let stack = try survey.kernel.memory.translate(GuestVirtualAddress(registers.rsp - depth)).physical.rawValue
            let pushed = Set(places.flatMap { $0.map { stack + $0 } })
            let sentOff = try contents(machine)
            effects.noteStop()
            try effects.resumeFromStop()

            // Meanwhile the guest's other threads run, its check of itself among them.
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
            let (again, returned) = try arrival(machine, at: survey.powerFunction.address)
            #expect(detour.returningHolder(returned) == holder)
            let held = try contents(machine)
            try detour.takeBack(holder, again, returned)
            let takenBack = try contents(machine)
            var own = registers
            own.control = returned.control
            #expect(try machine.registers(of: again) == own)
            try detour.stepOver(again)
            try effects.resumeFromStop()

            #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3)
            #expect(effects.counts.codeBytesWritten == 0 && effects.counts.dataBytesWritten == 0)
            try effects.withPaused { () throws(HypervisorError) in try effects.removeAllSites() }
            try effects.giveUpControl()
            let changed = differences(before, sentOff, machine)
            #expect(!changed.isEmpty && changed.subtracting(pushed) == [])
            #expect(differences(held, takenBack, machine) == [])
            try guest.expectNothingLeft()
        }

        @Test(
            "A guest that checks its code, its slack and its tables all the time notices no hold",
            arguments: [1, 4])
        func checked(_ processors: Int) throws {
            var configuration = GuestConfiguration.tested
            configuration.extraArguments = ["-smp", String(processors)]
            let guest = try BundledGuestMachine.ready(configuration)
            try guest.console.run("refuse on")
            try guest.console.run("guard on")
            let vigil = try VigilProcess(["attach", guest.target, "--hold", "400", "--format", "json"])
            _ = try vigil.event("attached")
            let calls = try (0..<4).map { try guest.console.start("power \($0 % 2 == 0 ? "kernel" : "user") 5 6 0") }
            for call in calls { #expect(try guest.console.reply(to: call)["status"] == 0xC000_02D3) }
            #expect(try guest.console.run("check").result.hasPrefix("ok clean"))
            vigil.send(SIGINT)
            #expect(vigil.exitStatus() == 0)
            let held = vigil.outputText.split(separator: "\n").compactMap { VigilEvent(String($0)) }
                .filter { $0.name == "held" }
            #expect(held.count == 4 && held.allSatisfy { $0.int("microseconds") ?? 0 >= 399_000 })
        }
    }
}
