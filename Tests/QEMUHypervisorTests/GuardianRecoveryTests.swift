import GuestMemory
import HypervisorInterface
import Testing
import X86

@testable import QEMUHypervisor

@Suite("What the guardian does for a dead Vigil") struct GuardianRecoveryTests {
    static let location = GuardianMessageTests.location
    static let entrySite = BreakpointSite.execution(location.entry)
    static let entry = "1,fffff8064a204000,1"
    static let watch = BreakpointSite.access(GuestVirtualAddress(0x2000), length: 8)

    /// Vigil died while this was in force.
    static func recover(
        _ qemu: FakeQEMU, _ change: (inout GuardedState) -> Void
    ) throws -> String {
        var state = GuardedState()
        change(&state)
        qemu.start()
        let report = try GuardianRecovery(state: state, qmp: qemu.monitor.client, debug: qemu.debug.client).run()
        qemu.finish()
        // However it was left: nobody is connected any more.
        #expect(qemu.log.contains("gdbserver none") && qemu.log.contains("chardev-remove"))
        return report
    }

    static func caller(_ rsp: UInt64) -> Registers {
        var registers = Registers()
        registers.rip = location.entry.rawValue
        registers.rsp = rsp
        return registers
    }

    @Test("Where nothing was in force the guest is not touched, not even stopped", arguments: ["running", "paused"])
    func nothing(status: String) throws {
        let qemu = FakeQEMU(status: status)
        _ = try Self.recover(qemu) { _ in }
        #expect(qemu.debug.received == [] && qemu.status == status)
    }

    @Test("A pause of Vigil's in which nothing was armed yet is ended, without a word to a stub that may not be there")
    func pausedWithNothingArmed() throws {
        let qemu = FakeQEMU(status: "paused")
        _ = try Self.recover(qemu) { $0.stopIsOurs = true }
        #expect(qemu.debug.received == [] && qemu.status == "running")
    }

    @Test("What was armed is removed, once or twice set, and the guest runs on", arguments: ["running", "debug"])
    func armed(status: String) throws {
        let qemu = FakeQEMU(status: status)
        qemu.sites = [Self.entry: 2, "4,2000,8": 1]
        _ = try Self.recover(qemu) { $0.sites = [Self.entrySite, Self.watch] }
        #expect(qemu.sites.values.allSatisfy { $0 == 0 } && qemu.status == "running" && qemu.writes.isEmpty)
    }

    @Test(
        "Where accesses are watched each vCPU is stepped once, but not one that is about to wait or at a breakpoint",
        arguments: [([0xf4], 0x1000), ([0x0f, 0x01, 0xc9], 0x1000), ([0x90], 0x1004)] as [([UInt8], UInt64)])
    func settles(next: [UInt8], rip: UInt64) throws {
        let qemu = FakeQEMU(status: "debug")
        qemu.registers = [Registers(), Registers()]
        qemu.registers[0].rip = 0x1000
        qemu.registers[1].rip = Self.location.entry.rawValue
        for (offset, byte) in next.enumerated() { qemu.memory[0x1000 + UInt64(offset)] = byte }
        _ = try Self.recover(qemu) { $0.sites = [Self.entrySite, Self.watch] }
        #expect(qemu.registers.map(\.rip) == [rip, Self.location.entry.rawValue] && qemu.status == "running")
    }

    @Test("A caller that was let in is not stopped on its way to sleep: the guest is disarmed when it sleeps")
    func aboutToSleep() throws {
        let qemu = FakeQEMU(status: "running")
        qemu.sites = [Self.entry: 1, "4,2000,8": 1]
        qemu.afterStatus = (3, "SUSPEND", { $0.status = "suspended" })
        _ = try Self.recover(qemu) { $0.sites = [Self.entrySite, Self.watch] }
        #expect(qemu.status == "suspended" && qemu.sites.values.allSatisfy { $0 == 0 } && !qemu.log.contains("c"))
    }

    @Test("A pause of Vigil's is ended, one of the operator's is not", arguments: [true, false])
    func paused(isOurs: Bool) throws {
        let qemu = FakeQEMU(status: "paused")
        qemu.sites = [Self.entry: 1]
        _ = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.stopIsOurs = isOurs
        }
        #expect(qemu.status == (isOurs ? "running" : "paused") && qemu.sites[Self.entry] == 0)
    }

    @Test(
        "A guest that sleeps, was never started or is off is left so, with nothing armed",
        arguments: ["suspended", "prelaunch", "shutdown", "guest-panicked"])
    func leftAsItIs(status: String) throws {
        let qemu = FakeQEMU(status: status)
        qemu.sites = [Self.entry: 1]
        _ = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.stopIsOurs = true
        }
        #expect(qemu.status == status && qemu.sites[Self.entry] == 0 && !qemu.log.contains("c"))
    }

    @Test("A held caller is let out of the handler, the handler zeroed, and the guest runs on")
    func held() throws {
        let qemu = FakeQEMU(status: "running")
        let caller = Self.caller(0x7f08)
        qemu.registers[0] = caller
        qemu.registers[0].rip = Self.location.address.rawValue + 0x50
        qemu.sites = [Self.entry: 1]
        let waitByte = Self.location.physical.rawValue + UInt64(Self.location.waitOffset) + 2
        qemu.onRun = { qemu in
            // It leaves once its byte is 0, and comes to the entry.
            guard qemu.sites[Self.entry] == 1,
                qemu.writes.contains(where: { $0.address == waitByte && $0.bytes == [0] })
            else { return false }
            qemu.registers[0].rip = Self.location.entry.rawValue
            return true
        }
        _ = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.handler = Self.location
            $0.held = [2: HeldCaller(slot: 2, registers: caller)]
        }
        let zeroes = try #require(qemu.writes.last)
        #expect(zeroes.address == Self.location.physical.rawValue)
        #expect(zeroes.bytes == [UInt8](repeating: 0, count: Self.location.length))
        #expect(qemu.status == "running" && qemu.sites[Self.entry] == 0 && qemu.registers[0] == caller)
    }

    @Test("A caller that was not sent into the handler yet, or is back already, is not waited for")
    func notInHandler() throws {
        let qemu = FakeQEMU(status: "debug")
        let caller = Self.caller(0x7f08)
        qemu.registers[0] = caller
        qemu.sites = [Self.entry: 1]
        _ = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.handler = Self.location
            $0.held = [0: HeldCaller(slot: 0, registers: caller)]
        }
        #expect(qemu.writes.map(\.bytes.count) == [Self.location.length])
        #expect(qemu.log.filter { $0 == "c" }.count == 1 && qemu.registers[0] == caller)
    }

    @Test("A handler that nobody is in is zeroed at once")
    func emptyHandler() throws {
        let qemu = FakeQEMU(status: "paused")
        _ = try Self.recover(qemu) {
            $0.handler = Self.location
            $0.stopIsOurs = true
        }
        #expect(qemu.writes.map(\.address) == [Self.location.physical.rawValue] && qemu.status == "running")
    }

    @Test("Another caller that comes to the entry meanwhile is stepped over it, and the held one still waited for")
    func otherCaller() throws {
        let qemu = FakeQEMU(status: "running")
        let held = Self.caller(0x7f08)
        qemu.registers = [Registers(), held]
        qemu.registers[1].rip = Self.location.address.rawValue + 0x50
        qemu.onRun = { qemu in
            guard qemu.sites[Self.entry] == 1 else { return false }
            if qemu.registers[0].rsp == 0 {
                qemu.registers[0] = Self.caller(0x9f08)
            } else {
                qemu.registers[1] = held
            }
            return true
        }
        _ = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.handler = Self.location
            $0.held = [0: HeldCaller(slot: 0, registers: held)]
        }
        #expect(qemu.registers[0].rip == Self.location.entry.rawValue + 4 && qemu.registers[1] == held)
        #expect(qemu.writes.last?.bytes.count == Self.location.length && qemu.status == "running")
    }

    @Test("In a guest that its operator stopped a held caller is released, and the handler stays for it to leave")
    func heldAndStopped() throws {
        let qemu = FakeQEMU(status: "paused")
        let caller = Self.caller(0x7f08)
        qemu.registers[0] = caller
        qemu.registers[0].rip = Self.location.address.rawValue + 0x50
        qemu.sites = [Self.entry: 1]
        let report = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.handler = Self.location
            $0.held = [1: HeldCaller(slot: 1, registers: caller)]
        }
        let waitByte = Self.location.physical.rawValue + UInt64(Self.location.waitOffset) + 1
        #expect(qemu.writes.map(\.address) == [waitByte] && qemu.writes[0].bytes == [0])
        #expect(qemu.status == "paused" && qemu.sites[Self.entry] == 0 && !qemu.log.contains("c"))
        #expect(report.contains("does not run"))
    }

    // MARK: An inline detour

    /// An armed detour, with a handler of eleven bytes.
    static func patched(_ status: String) -> FakeQEMU {
        let qemu = FakeQEMU(status: status)
        for place in GuardianMessageTests.patch.places {
            for (offset, byte) in place.patch.enumerated() {
                qemu.memory[place.physical.rawValue + UInt64(offset)] = byte
            }
        }
        qemu.memory[GuardianMessageTests.patch.handlerPhysical.rawValue] = 0x90
        return qemu
    }

    static let patchSite = BreakpointSite.execution(GuardianMessageTests.patch.handler)

    @Test("The function's bytes are put back, vCPUs in the handler go on in the function, and the handler stays")
    func patch() throws {
        let qemu = Self.patched("running")
        let handler = GuardianMessageTests.patch.handler.rawValue
        qemu.registers = [handler, handler + 7, handler + 3, 0x1234].map {
            var registers = Registers()
            registers.rip = $0
            return registers
        }
        let report = try Self.recover(qemu) {
            $0.sites = [Self.patchSite]
            $0.patch = GuardianMessageTests.patch
        }
        #expect(qemu.writes.map(\.address) == GuardianMessageTests.patch.places.map(\.physical.rawValue))
        #expect(qemu.writes.map(\.bytes) == GuardianMessageTests.patch.places.map(\.original))
        let entry = Self.location.entry.rawValue
        #expect(qemu.registers.map(\.rip) == [entry, entry + 6, handler + 3, 0x1234])
        #expect(report.contains("its own again; the jump's handler, 12 bytes") && qemu.status == "running")
    }

    @Test("A jump that was written in part, or not at all, is taken back; bytes of somebody else's are not")
    func partOfPatch() throws {
        let places = GuardianMessageTests.patch.places
        let half = Self.patched("paused")
        for (offset, byte) in places[1].original.enumerated() {
            half.memory[places[1].physical.rawValue + UInt64(offset)] = byte
        }
        _ = try Self.recover(half) {
            $0.patch = GuardianMessageTests.patch
            $0.stopIsOurs = true
        }
        #expect(half.writes.map(\.bytes) == [places[0].original] && half.status == "running")

        let foreign = Self.patched("running")
        foreign.memory[places[0].physical.rawValue] = 0xcc
        let report = try Self.recover(foreign) { $0.patch = GuardianMessageTests.patch }
        #expect(foreign.memory[places[0].physical.rawValue] == 0xcc && report.contains("somebody else's"))
    }

    @Test("A caller in a delay comes back to the function, or to the handler's start if it was on its way there")
    func delayAndPatch() throws {
        for arrival in [Self.location.entry, GuardianMessageTests.patch.handler] {
            let qemu = Self.patched("running")
            let caller = Self.busyCaller()
            qemu.onRun = { qemu in
                guard qemu.sites[Self.entry] == 1, qemu.memory[0x12_4ffd] == 1 else { return false }
                qemu.registers[0] = Self.arrived(caller)
                qemu.registers[0].rip = arrival.rawValue
                return true
            }
            _ = try Self.recover(qemu) {
                $0.sites = [Self.patchSite]
                $0.patch = GuardianMessageTests.patch
                $0.held = [0: Self.inDelay(caller)]
                $0.sentOff = [0]
            }
            #expect(qemu.registers[0] == caller && qemu.sites.values.allSatisfy { $0 == 0 })
        }
    }

    // MARK: Agents

    static let place = GuardianMessageTests.place
    static let trace = GuardianMessageTests.trace
    static let magic = withUnsafeBytes(of: trace.magic.littleEndian) { Array($0) }

    /// A guest with bytes at some places.
    static func guest(status: String = "running", _ contents: [(GuestPhysicalAddress, [UInt8])]) -> FakeQEMU {
        let qemu = FakeQEMU(status: status)
        for (physical, bytes) in contents {
            for (offset, byte) in bytes.enumerated() { qemu.memory[physical.rawValue + UInt64(offset)] = byte }
        }
        return qemu
    }

    @Test("Replaced code is restored, and only then the agent told to go by itself", arguments: ["running", "debug"])
    func agent(status: String) throws {
        let qemu = Self.guest(
            status: status, [(Self.place.physical, Self.place.patch), (Self.trace.header, Self.magic)])
        let report = try Self.recover(qemu) {
            $0.replaced = [Self.place.physical: Self.place]
            $0.agents = [0: Self.trace]
        }
        #expect(
            qemu.writes.map(\.address) == [
                Self.place.physical.rawValue, Self.trace.header.rawValue + 0x74, Self.trace.header.rawValue + 0x70,
            ])
        #expect(qemu.writes.map { Array($0.bytes.prefix(4)) }.dropFirst() == [[1, 0, 0, 0], [2, 0, 0, 0]])
        #expect(qemu.writes[0].bytes == Self.place.original && qemu.status == "running")
        // 32-bit fields: what lies behind them is the agent's.
        #expect(qemu.writes.dropFirst().allSatisfy { $0.bytes.count == 4 })
        #expect(report.contains("1 places") && report.contains("1 agents"))
    }

    @Test("A vCPU that has come by the gate and not got to the agent yet is taken there before the gate is as it was")
    func atEntrance() throws {
        var gate = Self.place
        gate.entrance = GuestVirtualAddress(0xffff_f806_4a20_9000)
        let qemu = Self.guest([(gate.physical, gate.patch)])
        let other = CodePatch.Place(physical: GuestPhysicalAddress(0x10), original: [1, 2], patch: [0, 0])
        qemu.registers = [Registers(), Registers()]
        qemu.registers[1].rip = 0xffff_f806_4a20_9000
        let report = try Self.recover(qemu) {
            $0.replaced = [gate.physical: gate, other.physical: other]
        }
        // Two instructions of four bytes, of five.
        #expect(qemu.registers[1].rip == 0xffff_f806_4a20_9008 && qemu.registers[0].rip == 0)
        #expect(qemu.writes.map(\.bytes) == [other.original, gate.original] && report.contains("2 places"))
    }

    @Test("Bytes that are not the patch any more, and memory that is no agent's any more, are left alone")
    func notTheirs() throws {
        let contents: [(GuestPhysicalAddress, [UInt8])] = [
            (Self.place.physical, Self.place.original), (Self.trace.header, [UInt8](repeating: 0x5a, count: 16)),
        ]
        let qemu = Self.guest(contents)
        let report = try Self.recover(qemu) {
            $0.replaced = [Self.place.physical: Self.place]
            $0.agents = [0: Self.trace, 4: Self.trace]
        }
        #expect(qemu.writes.isEmpty && qemu.status == "running")
        #expect(report.contains("0 places") && report.contains("0 agents"))
    }

    @Test("While somebody else's bytes may lead to an agent it is not told to go; one without a gate is")
    func foreignCode() throws {
        var gateless = Self.trace
        gateless.gate = 0..<0
        gateless.header = GuestPhysicalAddress(0x88_8000)
        let qemu = Self.guest([
            (Self.place.physical, [0xcc] + Self.place.patch.dropFirst()), (Self.trace.header, Self.magic),
            (gateless.header, Self.magic),
        ])
        _ = try Self.recover(qemu) {
            $0.replaced = [Self.place.physical: Self.place]
            $0.agents = [0: Self.trace, 1: gateless]
        }
        #expect(qemu.writes.map(\.address) == [0x88_8074, 0x88_8070])
        #expect(qemu.memory[Self.place.physical.rawValue] == 0xcc)
    }

    @Test("A vCPU in the gate's code is led out of it before the agent is told to go")
    func gate() throws {
        let qemu = Self.guest([(Self.trace.header, Self.magic)])
        qemu.registers = [
            0x1234, Self.trace.gate.lowerBound, Self.trace.gate.upperBound - 1, Self.trace.gate.upperBound,
        ]
        .map {
            var registers = Registers()
            registers.rip = $0
            return registers
        }
        _ = try Self.recover(qemu) { $0.agents = [0: Self.trace] }
        #expect(
            qemu.registers.map(\.rip) == [
                0x1234, Self.trace.gate.upperBound, Self.trace.gate.upperBound + 3, Self.trace.gate.upperBound,
            ])
        #expect(qemu.writes.count == 2)
    }

    @Test("An agent whose gate a vCPU does not come out of is not told to go")
    func stuckInGate() throws {
        var trace = Self.trace
        trace.gate = 0xffff_b900_0000_0000..<0xffff_b900_0001_0000
        let qemu = Self.guest([(trace.header, Self.magic)])
        qemu.registers[0].rip = trace.gate.lowerBound
        let report = try Self.recover(qemu) { $0.agents = [0: trace] }
        #expect(qemu.writes.isEmpty && report.contains("0 agents") && qemu.status == "running")
    }

    @Test("A borrowed thread gets its vector registers back, too: written where Vigil was at work on it")
    func vectors() throws {
        let qemu = FakeQEMU(status: "debug")
        let caller = Self.busyCaller()
        var halfway = Self.arrived(caller)
        halfway.rip = 0x1234
        qemu.registers = [halfway]
        _ = try Self.recover(qemu) {
            var held = Self.inDelay(caller)
            held.vectors = GuardianMessageTests.vectors
            $0.held = [0: held]
        }
        #expect(qemu.registers[0] == caller)
        // XMM0 and MXCSR by their numbers.
        for number in ["P31=", "P36=", "P41=a01f0000"] {
            #expect(qemu.debug.received.contains { $0.hasPrefix(number) }, "\(number)")
        }
    }

    // MARK: Callers in delays

    /// A caller with registers that are worth something.
    static func busyCaller() -> Registers {
        var registers = caller(0x7f08)
        (registers.rcx, registers.rdx, registers.r8) = (5, 6, 7)
        (registers.rax, registers.rbx, registers.rflags) = (0x1ab, 0xb, 0x246)
        return registers
    }

    static func inDelay(_ caller: Registers, vcpu: Int = 0) -> HeldCaller {
        let delay = HeldCaller.Delay(entry: location.entry, arrivalRSP: caller.rsp - 0x28, vcpu: VCPU(vcpu))
        return HeldCaller(slot: 0, registers: caller, delay: delay)
    }

    /// What a delay leaves of a caller's registers.
    static func arrived(_ caller: Registers) -> Registers {
        var registers = caller
        registers.rsp -= 0x28
        (registers.rcx, registers.rdx, registers.r8, registers.rax) = (1, 2, 3, 0)
        return registers
    }

    @Test("A caller in a delay is waited for, and gets its own registers when it comes back", arguments: [0, 1])
    func inDelay(vcpu: Int) throws {
        let qemu = FakeQEMU(status: "running")
        let caller = Self.busyCaller()
        qemu.registers = [Registers(), Registers()]
        qemu.sites = [Self.entry: 1, "4,7f08,8": 1]
        qemu.onRun = { qemu in
            guard qemu.sites[Self.entry] == 1 else { return false }
            // Its watch is gone before the guest runs.
            #expect(qemu.sites["4,7f08,8"] == 0)
            qemu.registers[vcpu] = Self.arrived(caller)
            return true
        }
        _ = try Self.recover(qemu) {
            $0.sites = [Self.entrySite, .access(GuestVirtualAddress(0x7f08), length: 8)]
            $0.held = [0: Self.inDelay(caller)]
            $0.sentOff = [0]
        }
        #expect(qemu.registers[vcpu] == caller && qemu.sites[Self.entry] == 0)
        #expect(qemu.status == "running" && qemu.writes.isEmpty)
    }

    @Test("A caller that Vigil was sending off, or putting back, gets its registers where it stands")
    func atWork() throws {
        let qemu = FakeQEMU(status: "debug")
        let caller = Self.busyCaller()
        var halfway = Self.arrived(caller)
        halfway.rip = 0x1234
        qemu.registers = [Registers(), halfway]
        qemu.sites = [Self.entry: 1]
        _ = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.held = [0: Self.inDelay(caller, vcpu: 1)]
        }
        #expect(qemu.registers[1] == caller && qemu.registers[0] == Registers())
        #expect(qemu.log.filter { $0 == "c" }.count == 1 && qemu.status == "running" && qemu.sites[Self.entry] == 0)
    }

    static let block = GuardianMessageTests.block
    /// A caller that owes something.
    static func owing(_ owed: OwedBlock, _ caller: Registers) -> HeldCaller {
        var held = inDelay(caller)
        held.delay?.owed = owed
        return held
    }

    /// The caller has been sent to give the block back.
    static func isFreeing(_ qemu: FakeQEMU, _ caller: Registers) -> Bool {
        let registers = qemu.registers[0]
        let returnAddress = withUnsafeBytes(of: location.entry.rawValue) { Array($0) }
        return registers.rip == block.free.rawValue && registers.rcx == block.address.rawValue
            && registers.rdx == UInt64(block.tag) && registers.rsp == caller.rsp - 0x30
            && qemu.writes.contains { $0.address == registers.rsp && $0.bytes == returnAddress }
    }

    @Test(
        "A block that a call has returned, or that a call was to take over and did not, is given back by its caller",
        arguments: [
            (OwedBlock.result(block), block.address.rawValue, true), (.result(block), 0, false),
            (.unlessSuccessful(block), 0xc000_009a, true), (.unlessSuccessful(block), 0, false),
            (.unlessCalled(block), 0, false),
        ])
    func owes(owed: OwedBlock, result: UInt64, isOwed: Bool) throws {
        let qemu = FakeQEMU(status: "running")
        let caller = Self.busyCaller()
        var runs = 0
        qemu.onRun = { qemu in
            runs += 1
            if runs == 2, isOwed { #expect(Self.isFreeing(qemu, caller)) }
            if runs > (isOwed ? 2 : 1) { return false }
            qemu.registers[0] = Self.arrived(caller)
            qemu.registers[0].rax = runs == 1 ? result : 0
            return true
        }
        let report = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.held = [0: Self.owing(owed, caller)]
            $0.sentOff = [0]
        }
        #expect(runs == (isOwed ? 3 : 2) && qemu.registers[0] == caller && qemu.status == "running")
        #expect(report.contains("1 blocks of the guest's pool given back") == isOwed)
    }

    @Test(
        "One that was not sent off yet gives back what its call was about",
        arguments: [OwedBlock.unlessSuccessful(block), .unlessCalled(block)])
    func owesBefore(owed: OwedBlock) throws {
        let qemu = FakeQEMU(status: "debug")
        let caller = Self.busyCaller()
        qemu.registers[0] = Self.arrived(caller)
        var runs = 0
        qemu.onRun = { qemu in
            runs += 1
            guard runs == 1 else { return false }
            #expect(Self.isFreeing(qemu, caller))
            qemu.registers[0] = Self.arrived(caller)
            return true
        }
        _ = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.held = [0: Self.owing(owed, caller)]
        }
        #expect(runs == 2 && qemu.registers[0] == caller && qemu.status == "running")
    }

    /// An agent whose thread has left its memory to Vigil.
    static func leave(in qemu: FakeQEMU) -> AgentTrace {
        let trace = GuardianMessageTests.trace
        for (offset, value) in [(0, trace.magic), (0x70, 3), (0x78, 3)] {
            let place = trace.header.rawValue + UInt64(offset)
            for index in 0..<8 {
                qemu.memory[place + UInt64(index)] = UInt8(truncatingIfNeeded: value >> (8 * UInt64(index)))
            }
        }
        return trace
    }

    @Test("The memory of an agent that a caller was about to give back is given back once, whatever is known of it")
    func owedAndLeft() throws {
        let qemu = FakeQEMU(status: "debug")
        let caller = Self.busyCaller()
        let trace = Self.leave(in: qemu)
        qemu.registers[0] = Self.arrived(caller)
        var runs = 0
        qemu.onRun = { qemu in
            runs += 1
            guard runs == 1 else { return false }
            #expect(Self.isFreeing(qemu, caller))
            qemu.registers[0] = Self.arrived(caller)
            return true
        }
        let report = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.agents = [0: trace]
            $0.held = [0: Self.owing(.unlessCalled(Self.block), caller)]
        }
        #expect(runs == 2 && qemu.registers[0] == caller && qemu.status == "running")
        #expect(report.contains("1 blocks of the guest's pool given back") && !report.contains("stay"))
    }

    @Test(
        "The memory of an agent whose thread has left it to Vigil is given back by a caller that is away, or said to stay",
        arguments: [true, false])
    func left(isSomebodyAway: Bool) throws {
        let qemu = FakeQEMU(status: "running")
        let caller = Self.busyCaller()
        let trace = Self.leave(in: qemu)
        var runs = 0
        qemu.onRun = { qemu in
            runs += 1
            if runs == 2 { #expect(Self.isFreeing(qemu, caller)) }
            guard isSomebodyAway, runs <= 2 else { return false }
            qemu.registers[0] = Self.arrived(caller)
            return true
        }
        let report = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.agents = [0: trace]
            if isSomebodyAway {
                $0.held = [0: Self.inDelay(caller)]
                $0.sentOff = [0]
            }
        }
        // It has gone: it is not told to do so.
        #expect(
            !qemu.writes.contains { $0.address == trace.header.rawValue + 0x70 } && !report.contains("by themselves"))
        #expect(runs == (isSomebodyAway ? 3 : 1) && qemu.status == "running")
        #expect(report.contains(isSomebodyAway ? "given back" : "976 bytes at"))
        #expect(qemu.memory[trace.header.rawValue] == (isSomebodyAway ? 0 : 0x56))
    }

    @Test("For a caller in a delay of a guest that its operator stopped, the operator is waited for")
    func operatorStopped() throws {
        let qemu = FakeQEMU(status: "paused")
        let caller = Self.busyCaller()
        qemu.sites = [Self.entry: 1]
        qemu.onStandStill = { qemu in
            // The operator starts it, and the delay ends.
            #expect(qemu.sites[Self.entry] == 1)
            qemu.registers[0] = Self.arrived(caller)
        }
        _ = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.held = [0: Self.inDelay(caller)]
            $0.sentOff = [0]
        }
        #expect(qemu.registers[0] == caller && qemu.status == "running" && qemu.sites[Self.entry] == 0)
    }

    @Test("A machine that wakes while its breakpoints are removed, and is stopped by that, runs on")
    func wokenMeanwhile() throws {
        let qemu = FakeQEMU(status: "suspended")
        qemu.sites = [Self.entry: 1]
        qemu.beforePacket = (
            "z",
            { qemu in
                qemu.status = "running"
                qemu.monitor.send("{\"event\": \"WAKEUP\"}\r\n")
            }
        )
        _ = try Self.recover(qemu) { $0.sites = [Self.entrySite] }
        #expect(qemu.status == "running" && qemu.sites[Self.entry] == 0 && qemu.log.contains("c"))
    }

    @Test("A reset takes a caller in a delay with it")
    func resetInDelay() throws {
        let qemu = FakeQEMU(status: "running")
        qemu.sites = [Self.entry: 1]
        qemu.onRun = { qemu in
            qemu.monitor.send("{\"event\": \"RESET\", \"data\": {\"guest\": false}}\r\n")
            return false
        }
        _ = try Self.recover(qemu) {
            $0.sites = [Self.entrySite]
            $0.held = [0: Self.inDelay(Self.busyCaller())]
            $0.sentOff = [0]
        }
        #expect(qemu.status == "running" && qemu.sites[Self.entry] == 0)
    }
}
