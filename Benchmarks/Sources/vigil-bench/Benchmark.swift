/// One or more figures that are measured together.
struct Benchmark: Sendable {
    var names: [String]
    var run: @Sendable (inout BenchmarkContext) throws -> [Measurement]

    static let all: [Benchmark] = [
        VirtualReads.benchmark(pages: 256),
        VirtualReads.benchmark(pages: 4096),
        VirtualReads.benchmark(pages: 65536),
        MemoryReads.physical,
        MemoryReads.private,
        AttachBenchmark.benchmark,
        RoundTripBenchmark.benchmark,
        HoldBenchmark.inHandler,
        HoldBenchmark.inDelay,
        WithdrawalBenchmark.onPowerCall,
        WithdrawalBenchmark.onSystemCall,
        PageTableWriteBenchmark.benchmark,
        OverheadBenchmark.benchmark,
    ]
}

/// What the benchmarks of one run share.
struct BenchmarkContext {
    /// Fewer and shorter rounds: to see that everything works, not to compare figures.
    var quick: Bool
    /// The program that becomes the guardian, and its arguments.
    var guardianCommand: [String]
    private var sharing: BenchmarkGuest?

    init(quick: Bool, vigil: String) {
        self.quick = quick
        guardianCommand = [vigil, "guardian"]
    }

    /// A guest whose RAM QEMU shares. Booted for whoever asks first.
    mutating func guest() throws -> BenchmarkGuest {
        if let sharing { return sharing }
        let guest = try BenchmarkGuest(sharesMemory: true)
        sharing = guest
        return guest
    }
}
