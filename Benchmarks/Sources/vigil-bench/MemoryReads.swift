import CLimits
import GuestMemory
import HypervisorInterface
import QEMUHypervisor

/// Reads of a running guest's RAM by physical address, at random places of its largest region.
enum MemoryReads {
    static let physical = Benchmark(names: ["physical-read-8", "physical-read-4k", "physical-read-16m"]) { context in
        let machine = try context.guest().connect()
        guard machine.memoryAccess.hasPrefix("mapped") else {
            throw BenchmarkError("the guest's RAM is not mapped: \(machine.memoryAccess)")
        }
        let memory = machine.memory
        // Pages that nobody has touched yet would cost a fault.
        let whole = try region(of: memory)
        limitTouch(whole)
        return [
            try single(
                "physical-read-8", memory, context, unit: "M/s", scale: 1e6,
                goal: .ratio(1 / 3, "within 3x of a memcpy call")
            ) { limit_copy($0, $1, $2, 8) },
            try blocks(
                "physical-read-4k", memory, context, size: 4096, unit: "M/s", scale: 1e6,
                goal: .ratio(0.9, "90 % of memcpy")
            ) { limit_copy($0, $1, $2, 4096) },
            try blocks(
                "physical-read-16m", memory, context, size: 16 << 20, unit: "GiB/s", scale: 64,
                goal: .ratio(0.9, "90 % of memcpy")
            ) { limit_copy($0, $1, $2, 16 << 20) },
        ]
    }

    static let `private` = Benchmark(names: ["private-read-8", "private-read-4k"]) { context in
        let guest = try BenchmarkGuest(sharesMemory: false)
        let machine = try guest.connect()
        guard let pid = machine.identity.processID, machine.memoryAccess.hasPrefix("process") else {
            throw BenchmarkError("the guest's RAM is not read from its process: \(machine.memoryAccess)")
        }
        let memory = machine.memory
        return [
            try single(
                "private-read-8", memory, context, unit: "M/s", scale: 1e6,
                goal: .ratio(0.9, "90 % of process_vm_readv")
            ) { limit_process_copy(pid, $0, $1, $2, 8) },
            try blocks(
                "private-read-4k", memory, context, size: 4096, unit: "M/s", scale: 1e6,
                goal: .ratio(0.9, "90 % of process_vm_readv")
            ) { limit_process_copy(pid, $0, $1, $2, 4096) },
        ]
    }

    /// A batch in C: buffer, host addresses, their count.
    private typealias Limit = (UnsafeMutableRawPointer, [UInt64], Int) -> UInt64

    /// Reads of 8 bytes, one `load` each.
    private static func single(
        _ name: String, _ memory: PhysicalMemory, _ context: BenchmarkContext, unit: String, scale: Double,
        goal: Measurement.Goal, _ limit: Limit
    ) throws -> Measurement {
        try compare(name, memory, context, size: 8, unit: unit, scale: scale, goal: goal, limit) { addresses, _ in
            try sum(memory, addresses)
        }
    }

    /// Reads of `size` bytes into the same buffer.
    private static func blocks(
        _ name: String, _ memory: PhysicalMemory, _ context: BenchmarkContext, size: Int, unit: String, scale: Double,
        goal: Measurement.Goal, _ limit: Limit
    ) throws -> Measurement {
        try compare(name, memory, context, size: size, unit: unit, scale: scale, goal: goal, limit) {
            try copy(memory, $0, into: $1)
        }
    }

    @inline(never)
    private static func sum(_ memory: PhysicalMemory, _ addresses: [UInt64]) throws(MemoryError) -> UInt64 {
        var sum: UInt64 = 0
        for address in addresses { sum &+= try memory.load(UInt64.self, at: GuestPhysicalAddress(address)) }
        return sum
    }

    @inline(never)
    private static func copy(
        _ memory: PhysicalMemory, _ addresses: [UInt64], into buffer: UnsafeMutableRawBufferPointer
    ) throws(MemoryError) -> UInt64 {
        var sum: UInt64 = 0
        for address in addresses {
            try memory.read(at: GuestPhysicalAddress(address), into: buffer)
            sum &+= buffer.loadUnaligned(as: UInt64.self)
        }
        return sum
    }

    private static func compare(
        _ name: String, _ memory: PhysicalMemory, _ context: BenchmarkContext, size: Int, unit: String, scale: Double,
        goal: Measurement.Goal, _ limit: Limit,
        _ read: ([UInt64], UnsafeMutableRawBufferPointer) throws -> UInt64
    ) throws -> Measurement {
        let region = try region(of: memory)
        let alignment = UInt64(min(size, 4096))
        var generator = SeededGenerator(seed: UInt64(size))
        let places = (0..<(size > 4096 ? 16 : 1 << 16)).map { _ in
            UInt64.random(in: 0...(region.length - UInt64(size)) / alignment, using: &generator) * alignment
        }
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 4096)
        defer { buffer.deallocate() }
        guard let start = buffer.baseAddress else { throw BenchmarkError("no memory") }

        // A batch takes some 10 ms in C.
        let hosts = places.map { region.hostAddress + $0 }
        _ = limit(start, hosts, hosts.count)
        let batch = seconds { _ = limit(start, hosts, hosts.count) }
        let wanted = context.quick ? 0.005 : 0.03
        let repeats = max(1, Int(wanted / max(batch, 1e-6)))
        let used = batch > wanted ? max(1, Int(Double(places.count) * wanted / batch)) : places.count
        let batches = Array(repeatElement(places.prefix(used), count: repeats).joined())
        let addresses = batches.map { region.base.rawValue + $0 }
        let hostAddresses = batches.map { region.hostAddress + $0 }

        var rounds = Rounds(context.quick ? 3 : 15)
        try rounds.measure {
            let time = try seconds { _ = try read(addresses, buffer) }
            return Double(addresses.count) / time
        } against: {
            var sum: UInt64 = 0
            let time = seconds { sum = limit(start, hostAddresses, hostAddresses.count) }
            guard sum != .max else { throw BenchmarkError("\(name): the reads in C failed") }
            return Double(addresses.count) / time
        }
        let (value, bare) = rounds.medians
        return Measurement(
            name, .rate, value: value / scale, limit: bare / scale, unit: unit, goal: goal)
    }

    private static func region(of memory: PhysicalMemory) throws -> RAMRegion {
        guard let region = memory.regions.max(by: { $0.length < $1.length }), region.length > 32 << 20 else {
            throw BenchmarkError("the guest has too little RAM")
        }
        return region
    }

    private static func limitTouch(_ region: RAMRegion) {
        let pages = stride(from: region.hostAddress, to: region.hostAddress + region.length, by: 4096).map { $0 }
        var word: UInt64 = 0
        _ = limit_copy(&word, pages, pages.count, 8)
    }
}
