import CHandlerHarness
import Glibc
import GuestMemory
import X86

@testable import Agents

/// Memory of this process, read as if it were the guest's.
struct OwnMemory: TranslatedMemory {
    let physical: PhysicalMemory
    var pagingMode: PagingMode { .fourLevel }

    func translate(_ address: GuestVirtualAddress) throws(MemoryError) -> Translation {
        Translation(
            physical: GuestPhysicalAddress(address.rawValue), pageSize: 4096, rights: [.writable, .executable],
            entry: 0)
    }
}

/// The filter as it was built for guests, in executable memory of this process.
final class FilterRun: @unchecked Sendable {
    /// The words of charness.h by the registers' hardware numbers; RSP has another meaning there.
    static let words = [0, 1, 2, 3, HARNESS_RSP, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    static let dataWords = 64

    let image: AgentImage
    let layout: PageTableFilterLayout
    private let start: UnsafeMutableRawPointer
    private let mapped: Int
    /// Instructions of a test's own.
    private let code: UnsafeMutableRawPointer
    private let stack: UnsafeMutableRawPointer
    /// What the instructions under test write.
    let data: UnsafeMutablePointer<UInt64>
    let memory: OwnMemory
    var watches: PageTableWatchTable
    var reader: PageTableReportReader

    init() throws {
        image = try AgentImage.bundled("ptfilter")
        layout = try PageTableFilterLayout(image: image.bytes, data: image.data, size: image.size)
        let size = (image.size + 4095) & ~4095
        mapped = size + 0x4000
        let mapping = mmap(
            nil, mapped, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        precondition(mapping != MAP_FAILED, "no executable memory for the test")
        start = mapping!
        code = start + size
        data = (start + size + 0x1000).bindMemory(to: UInt64.self, capacity: Self.dataWords)
        stack = start + size + 0x2000
        let base = UInt64(UInt(bitPattern: start))
        memory = OwnMemory(
            physical: PhysicalMemory(mapped: [
                RAMRegion(base: GuestPhysicalAddress(base), length: UInt64(mapped), hostAddress: base)
            ]))
        watches = PageTableWatchTable(layout)
        reader = PageTableReportReader(layout, at: GuestVirtualAddress(base))
        load()
    }

    deinit { munmap(start, mapped) }

    /// As the host loads it: its bytes, then zeroes.
    func load() {
        memset(start, 0, image.size)
        start.copyMemory(from: image.bytes, byteCount: image.bytes.count)
        watches = PageTableWatchTable(layout)
        reader = PageTableReportReader(layout, at: GuestVirtualAddress(UInt64(UInt(bitPattern: start))))
    }

    func make(_ writes: [PageTableFilterWrite]) {
        for write in writes { (start + write.offset).copyMemory(from: write.bytes, byteCount: write.bytes.count) }
    }

    func watch(_ place: UnsafeMutablePointer<UInt64>, index: UInt32 = 0, isImmediate: Bool = false) throws {
        make(try watches.insert(Self.address(place), index: index, isImmediate: isImmediate))
    }

    /// What is to be read, acknowledged.
    func reports() throws -> [PageTableReport] {
        let batch = try reader.read(from: memory)
        precondition(!batch.isCorrupt)
        if let acknowledgement = batch.acknowledgement { make([acknowledgement]) }
        return batch.reports
    }

    func counts() throws -> PageTableFilterCounts { try reader.counts(from: memory) }

    /// The header's count of those inside.
    var inside: Int32 { (start + 0x7c).loadUnaligned(as: Int32.self) }

    func word(at offset: Int) -> UInt64 { (start + offset).loadUnaligned(as: UInt64.self) }

    func setWord(_ value: UInt64, at offset: Int) { (start + offset).storeBytes(of: value, as: UInt64.self) }

    func setByte(_ value: UInt8, at offset: Int) { (start + offset).storeBytes(of: value, as: UInt8.self) }

    var gate: UnsafeRawPointer { UnsafeRawPointer(start + (image.gate?.lowerBound ?? 0)) }

    static func address(_ place: UnsafeMutablePointer<UInt64>) -> GuestVirtualAddress {
        GuestVirtualAddress(UInt64(UInt(bitPattern: place)))
    }

    /// Where the stack pointer is before and after.
    private var rsp: UInt64 { UInt64(UInt(bitPattern: stack + 0x1800)) }

    /// Executes the instruction itself.
    func execute(_ instruction: [UInt8], _ state: [UInt64]) -> [UInt64] {
        // Behind it a jump to where the state is taken down.
        let jump: [UInt8] = [0xff, 0x25, 0, 0, 0, 0] + harness_entry().littleEndianBytes
        code.copyMemory(from: instruction + jump, byteCount: instruction.count + jump.count)
        var state = state
        state[HARNESS_RSP] = rsp
        return run(state, code)
    }

    /// Interrupts in front of the instruction that lies at `PageTableWriter.address`.
    func interrupt(_ state: [UInt64]) -> [UInt64] {
        // What a processor pushes: Intel SDM volume 3, 6.14.2.
        let frame: [UInt64] = [
            harness_entry(), harness_code_segment(), state[HARNESS_FLAGS] & ~0x200, rsp, harness_stack_segment(),
        ]
        let place = stack + 0x1000 - frame.count * 8
        place.copyMemory(from: frame, byteCount: frame.count * 8)
        var state = state
        state[HARNESS_RSP] = UInt64(UInt(bitPattern: place))
        return run(state, gate)
    }

    private func run(_ state: [UInt64], _ target: UnsafeRawPointer) -> [UInt64] {
        var result = [UInt64](repeating: 0, count: HARNESS_WORDS)
        harness_run(state, &result, target, nil, nil)
        // The vector registers are not the filter's, and a test's own memory copies use them.
        return Array(result[...HARNESS_RSP])
    }
}
