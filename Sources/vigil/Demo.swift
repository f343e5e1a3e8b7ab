import ArgumentParser
import BundledGuest
import Foundation
import Introspection
import PowerTransitions
import QEMUHypervisor

struct Demo: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract:
            "Boot the bundled guest in a real QEMU, attach to it, and see it sleep, reboot, hibernate and power off.",
        discussion: """
            The guest is a small NT-shaped kernel that Vigil attaches to as to any other: through QEMU's QMP \
            socket, knowing nothing of it beforehand. It asks for transitions without privilege, with bad \
            arguments, with a driver that refuses, and for real. It hibernates, and resumes in a second QEMU. Then it \
            does all that again with agents in it and protections armed, once with Vigil's guard off, which some \
            transitions are the end of, and once with it on.
            """)

    @Option(help: "What the guest is built for: x64; x86-pae or x86, 32-bit kernels with and without PAE.")
    var arch: GuestConfiguration.Architecture = .x64
    @Option(
        help: ArgumentHelp(
            "How long to hold the caller of each transition (default: 500; not with --rounds).",
            valueName: "milliseconds"))
    var hold: Int?
    @Option(help: "How to report: text for people, json for scripts (one object a line).")
    var format: OutputFormat = .text
    @Option(
        help: ArgumentHelp(
            "Instead of the story: so many rounds of all transitions in random order, with agents and protections.",
            valueName: "number"))
    var rounds: Int?
    @Option(help: ArgumentHelp("The order of such rounds (default: 1).", valueName: "number"))
    var seed: UInt64?
    @Option(help: ArgumentHelp("The guest's processors in such rounds: 1 to 4 (default: 1).", valueName: "number"))
    var vcpus: Int?
    @Option(
        name: .customLong("guard"),
        help: "Whether agents are taken out before each transition of such rounds (default: on).")
    var guardSwitch: GuardSwitch?

    private var holdTime: Int { hold ?? 500 }

    func validate() throws {
        if let rounds, rounds < 1 { throw ValidationError("--rounds takes a positive number.") }
        if rounds == nil && (seed != nil || vcpus != nil || guardSwitch != nil) {
            throw ValidationError("--seed, --vcpus and --guard need --rounds.")
        }
        if rounds != nil && hold != nil {
            throw ValidationError("--hold and --rounds exclude each other: in rounds callers are held for the agents.")
        }
        if arch != .x64 && guardSwitch == .off {
            throw ValidationError("--guard off shows what agents do to a guest, and those are for --arch x64.")
        }
        if let vcpus, !(1...4).contains(vcpus) { throw ValidationError("--vcpus takes 1 to 4.") }
        if let hold, hold < 1 { throw ValidationError("--hold takes a positive number of milliseconds.") }
    }

    mutating func run() throws {
        InterruptSignals.install()
        let renderer = EventRenderer(format)
        if let rounds {
            return try Self.starting {
                try DemoRounds(
                    rounds: rounds, seed: seed ?? 1, architecture: arch, processors: vcpus ?? 1,
                    isGuarded: guardSwitch != .off,
                    renderer: renderer, format: format
                ).run()
            }
        }
        let state = "\(NSTemporaryDirectory())/vigil-demo-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: state) }
        var options = EngineOptions()
        options.guardOptions = PowerGuardOptions(hold: .milliseconds(holdTime))
        options.journal = FileHibernationJournal(folder: state)

        let disk = try Self.starting { try TemporaryDisk() }
        let story = try play(.first, options, disk, renderer)
        var chapters = story.chapters
        if let request = story.hibernationRequest {
            let part = DemoStory.Part.second(session: options.session, request: request)
            options.session = UUID().uuidString.lowercased()
            chapters += try play(part, options, disk, renderer).chapters
        }
        let comparison = DemoComparison(renderer, arch)
        try Self.starting { try comparison.run() }
        renderer.print(line: summary(chapters, comparison, format))
        if chapters.contains(where: { !$0.passed }) || chapters.count < DemoStory.length || !comparison.passed {
            throw VigilExit.demoFailed.exitCode
        }
    }

    /// Starts a QEMU, attaches to it, and stays until it ends.
    private func play(
        _ part: DemoStory.Part, _ options: EngineOptions, _ disk: TemporaryDisk, _ renderer: EventRenderer
    ) throws -> DemoStory {
        let guest = try Self.starting {
            var configuration = GuestConfiguration()
            configuration.architecture = arch
            configuration.disk = disk.path
            let guest = try BundledGuestMachine(configuration)
            switch part {
            case .first:
                renderer.note("booting the bundled guest in QEMU")
                renderer.note("guest: \(try guest.waitUntilReady())")
            case .second:
                renderer.note("a new QEMU with the same disk")
                renderer.note("guest: \(try guest.console.waitForLine(containing: "! awake"))")
            }
            renderer.note("$ vigil attach \(guest.target) --hold \(holdTime)")
            return guest
        }
        guard let target = Target(argument: guest.target) else {
            throw Failure.exit("\(guest.target) is no target", .demoFailed)
        }
        var story: DemoStory?
        try Failure.reporting {
            let machine = try target.connect()
            machine.wakeDescriptor = InterruptSignals.readEnd
            let engine = Engine(machine, options: options, report: renderer.render)
            let running = DemoStory(
                part, guest: guest, engine: engine, hold: .milliseconds(holdTime), note: renderer.note)
            story = running
            renderer.observer = running.observe
            running.begin()
            defer {
                running.end()
                renderer.observer = nil
            }
            try engine.run()
        }
        guard let story else { throw VigilExit.demoFailed.exitCode }
        return story
    }

    /// Turns what keeps the guest from starting into a sentence and an exit code.
    private static func starting<Result>(_ body: () throws -> Result) throws -> Result {
        do {
            return try body()
        } catch let code as ExitCode {
            throw code
        } catch GuestStartError.programMissing(let name) {
            throw Failure.exit(GuestStartError.programMissing(name).description, .missingProgram)
        } catch {
            throw Failure.exit("\(error)", .demoFailed)
        }
    }

    private func summary(
        _ chapters: [DemoStory.Chapter], _ comparison: DemoComparison, _ format: OutputFormat
    ) -> String {
        let passed = chapters.count { $0.passed } + comparison.verdicts.count { $0.isExpected }
        let expected = DemoStory.length + comparison.length
        switch format {
        case .json:
            var line = JSONLine(event: "demo-summary")
            line.add("architecture", arch.rawValue)
            line.add("passed", passed)
            line.add("expected", expected)
            line.add("chapters", chapters)
            line.add("transitions", comparison.verdicts)
            return line.text
        case .text:
            let width = chapters.map(\.name.count).max() ?? 0
            let rows = chapters.map { chapter in
                "  \(chapter.passed ? "✓" : "✗") \(chapter.name.padding(toLength: width, withPad: " ", startingAt: 0))  \(chapter.seen)"
            }
            return
                (["", "What was asked of the guest, and what Vigil saw:", ""] + rows + [""] + comparison.table
                + ["", "\(passed) of \(expected) as expected."]).joined(separator: "\n")
        }
    }
}

extension GuestConfiguration.Architecture: ExpressibleByArgument {}

/// Whether agents are taken out before transitions.
enum GuardSwitch: String, ExpressibleByArgument, CaseIterable {
    case on, off
}
