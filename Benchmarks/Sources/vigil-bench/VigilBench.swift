import ArgumentParser
import Foundation

@main
struct VigilBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "vigil-bench",
        abstract: "Measure Vigil beside bare C programs that do the same, and print how near it comes.",
        discussion: """
            A goal that is missed is shown as such and is no failure. Figures of different runs, or of different \
            machines, say nothing beside each other; their ratios do.
            """)

    @Option(help: ArgumentHelp("Run only benchmarks whose name contains this.", valueName: "name"))
    var filter: String?
    @Flag(help: "Fewer and shorter rounds: shows that all works, measures badly.")
    var quick = false
    @Option(help: ArgumentHelp("Where to write the figures as JSON.", valueName: "path"))
    var output = ".build/bench.json"
    @Option(help: ArgumentHelp("The vigil program, which becomes the guardian.", valueName: "path"))
    var vigil = ".build/release/vigil"

    mutating func run() throws {
        guard FileManager.default.isExecutableFile(atPath: vigil) else {
            throw ValidationError("There is no program \(vigil); \"make build\" makes it, --vigil names another.")
        }
        let isWanted = { [filter] (name: String) in filter.map { name.contains($0) } ?? true }
        let wanted = Benchmark.all.filter { $0.names.contains(where: isWanted) }
        guard !wanted.isEmpty else {
            let names = Benchmark.all.flatMap(\.names).joined(separator: ", ")
            throw ValidationError("No benchmark is named so. There are: \(names).")
        }
        var context = BenchmarkContext(quick: quick, vigil: vigil)
        var report = Report()
        show(Report.heading)
        for benchmark in wanted {
            for measurement in try benchmark.run(&context) where isWanted(measurement.name) {
                show(report.add(measurement))
            }
        }
        try report.write(to: output)
    }

    /// Prints a line at once, also into a pipe.
    private func show(_ line: String) { FileHandle.standardOutput.write(Data((line + "\n").utf8)) }
}
