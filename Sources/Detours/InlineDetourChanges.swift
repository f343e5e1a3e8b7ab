import GuestMemory
import HypervisorInterface
import X86

/// Bytes that lie together in virtual and in physical memory.
struct InlinePlace {
    var physical: GuestPhysicalAddress
    var count: Int
}

extension InlineDetour {
    /// One change of the guest, with what it takes to undo it.
    enum Change {
        case write([UInt8], over: [UInt8], at: [InlinePlace])
        case move(VCPU, Registers, to: UInt64)
    }

    /// Makes all changes, or none.
    /// - Parameter done: is called when the guest is no longer as it was: with false when all is done, with true
    ///   when a change failed and could not be taken back.
    func perform(_ changes: [Change], done: (_ unfinished: Bool) -> Void) throws(InlineDetourError) {
        for (index, change) in changes.enumerated() {
            do throws(HypervisorError) {
                try make(change)
            } catch {
                let failure = error
                do throws(HypervisorError) {
                    // The failed one too: it may have been made in part.
                    for change in changes[...index].reversed() { try undo(change) }
                } catch {
                    done(true)
                    throw .unfinished(failure, thenTakingBack: error)
                }
                throw .hypervisor(failure)
            }
        }
        done(false)
    }

    private func make(_ change: Change) throws(HypervisorError) {
        switch change {
        case .write(let bytes, _, let places): try write(bytes, at: places)
        case .move(let vcpu, let registers, let target):
            var moved = registers
            moved.rip = target
            try effects.setRegisters(of: vcpu, from: registers, to: moved)
        }
    }

    private func undo(_ change: Change) throws(HypervisorError) {
        switch change {
        case .write(_, let bytes, let places): try write(bytes, at: places)
        case .move(let vcpu, let registers, _):
            let current = try effects.machine.registers(of: vcpu)
            if current != registers { try effects.setRegisters(of: vcpu, from: current, to: registers) }
        }
    }

    private func write(_ bytes: [UInt8], at places: [InlinePlace]) throws(HypervisorError) {
        var rest = bytes[...]
        for place in places {
            try effects.writeCode(Array(rest.prefix(place.count)), at: place.physical)
            rest = rest.dropFirst(place.count)
        }
    }

    /// Where bytes lie in physical memory, page by page.
    func places(
        of address: GuestVirtualAddress, _ count: Int, in memory: some TranslatedMemory
    ) throws(InlineDetourError) -> [InlinePlace] {
        var places: [InlinePlace] = []
        var done = 0
        do throws(MemoryError) {
            while done < count {
                let translation = try memory.translate(address + UInt64(done))
                let part = Int(min(UInt64(count - done), translation.bytesToPageEnd))
                places.append(InlinePlace(physical: translation.physical, count: part))
                done += part
            }
        } catch {
            throw .memory(error, doing: "looking for the code at \(address)")
        }
        return places
    }

    /// What lies there now.
    func contents(of places: [InlinePlace]) throws(InlineDetourError) -> [UInt8] {
        var bytes: [UInt8] = []
        for place in places {
            var part = [UInt8](repeating: 0, count: place.count)
            do throws(MemoryError) {
                try part.withUnsafeMutableBufferPointer { (buffer) throws(MemoryError) in
                    try effects.machine.memory.read(at: place.physical, into: UnsafeMutableRawBufferPointer(buffer))
                }
            } catch {
                throw .memory(error, doing: "reading code at \(place.physical)")
            }
            bytes += part
        }
        return bytes
    }

    /// Every vCPU with its registers. The machine stands.
    func processors() throws(InlineDetourError) -> [(vcpu: VCPU, registers: Registers)] {
        var result: [(vcpu: VCPU, registers: Registers)] = []
        do throws(HypervisorError) {
            for index in 0..<effects.machine.vcpuCount {
                let vcpu = VCPU(index)
                result.append((vcpu, try effects.machine.registers(of: vcpu)))
            }
        } catch {
            throw .hypervisor(error)
        }
        return result
    }

    /// Runs `body` while the machine stands.
    func whilePaused<Value>(
        _ body: () throws(InlineDetourError) -> Value
    ) throws(InlineDetourError) -> Value {
        let result: Result<Value, InlineDetourError>
        do throws(HypervisorError) { result = try effects.attemptPaused(body) } catch { throw .hypervisor(error) }
        return try result.get()
    }
}
