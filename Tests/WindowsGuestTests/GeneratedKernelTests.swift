import Foundation
import GuestMemory
import TestSupport
import Testing
import WindowsGuest

/// What discovery said of a generated kernel.
struct Discovery {
    var outcome: KernelShape.Outcome
    var error: DiscoveryError?
    /// Something that was found is not what the kernel has there.
    var mistakes: [String] = []

    /// Runs all of discovery, as a survey of a guest does.
    init(_ guest: ShapedKernel) {
        do throws(DiscoveryError) {
            let kernel = try KernelLocator(physical: guest.ram.physical).locate(among: guest.processorTables)
            outcome = .found
            if kernel.base != GuestVirtualAddress(guest.base) { mistakes.append("the kernel is at \(kernel.base)") }
            if kernel.build != guest.shape.build { mistakes.append("build \(kernel.build)") }
            let offsets = try KernelOffsets(of: kernel)
            compare(offsets, guest)
            let list = try ProcessList(of: kernel, offsets: offsets).processes()
            let names = ["System"] + guest.shape.processes.map(\.name)
            if list.map(\.imageName) != names { mistakes.append("processes \(list.map(\.imageName))") }
            let function = try PowerFunctionLocator(of: kernel, processes: list, patterns: guest.patterns).locate()
            if function.address != guest.powerFunction { mistakes.append("the function is at \(function.address)") }
            if function.foundBy.contains(.serviceTable), function.number != guest.shape.numbers["SetSystemPowerState"] {
                mistakes.append("its number is \(function.number ?? 0)")
            }
        } catch {
            self.error = error
            outcome =
                switch error {
                case .ambiguous: .ambiguous
                case .disagreement: .disagreement
                default: error.canBeRetried ? .retryable : .refused
                }
        }
    }

    private mutating func compare(_ found: KernelOffsets, _ guest: ShapedKernel) {
        let offsets = guest.shape.offsets
        let pairs = [
            (found.currentThread, offsets.currentThread), (found.previousMode, offsets.previousMode),
            (found.attachedProcess, offsets.attachedProcess), (found.threadProcess, offsets.threadProcess),
            (found.threadID, offsets.threadID), (found.uniqueProcessID, offsets.uniqueProcessID),
            (found.peb, offsets.peb), (found.imageFileName, offsets.imageFileName),
        ]
        for (index, pair) in pairs.enumerated() where pair.0 != UInt64(pair.1) {
            mistakes.append("offset \(index) is \(pair.0) instead of \(pair.1)")
        }
    }
}

@Suite("Kernels that nobody wrote") struct GeneratedKernelTests {
    /// More than ten with VIGIL_KERNEL_BATCHES, for a soak.
    static let batches = ProcessInfo.processInfo.environment["VIGIL_KERNEL_BATCHES"].flatMap(Int.init) ?? 10
    static let perBatch = 100

    @Test(
        "Of a thousand generated kernels of both widths each is found, or refused for the reason there is; none is taken for what it is not",
        arguments: 0..<batches)
    func thousand(batch: Int) {
        let ram = SyntheticRAM(size: ShapedKernel.memorySize)
        defer { ram.unmap() }
        var counts: [String: Int] = [:]
        var undamaged = 0
        var found = 0
        for index in 0..<Self.perBatch {
            let seed = UInt64(batch * Self.perBatch + index)
            let shape = KernelShape(seed: seed)
            ram.reset()
            let discovery = Discovery(ShapedKernel(shape, ram: ram))
            let words = "seed \(seed): \(discovery.error.map { "\($0)" } ?? "found"); \(shape)"
            #expect(discovery.mistakes.isEmpty, "\(discovery.mistakes) \(words)")
            #expect(shape.expected.contains(discovery.outcome), "\(words)")
            counts["\(shape.architecture) \(discovery.outcome)", default: 0] += 1
            guard shape.isUndamaged else { continue }
            undamaged += 1
            if discovery.outcome == .found { found += 1 }
        }
        #expect(found * 10 >= undamaged * 9 && undamaged >= Self.perBatch / 3)
        let words = counts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
        print("generated kernels \(batch): \(words); undamaged: \(found) of \(undamaged) found")
    }
}
