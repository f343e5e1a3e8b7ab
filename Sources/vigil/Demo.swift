import ArgumentParser
import BundledGuest
import Foundation
import Introspection
import PowerTransitions
import QEMUHypervisor

struct Demo: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Boot the bundled guest in a real QEMU, attach to it, and see it sleep, reboot and power off.",
        discussion: """
            The guest is a small NT-shaped kernel that Vigil attaches to as to any other: through QEMU's QMP \
            socket, knowing nothing of it beforehand. It asks for transitions without privilege, with bad \
            arguments, with a driver that refuses, and for real.
            """)

    @Option(help: ArgumentHelp("How long to hold the caller of each transition.", valueName: "milliseconds"))
    var hold: Int = 500
    @Option(help: "How to report: text for people, json for scripts (one object a line).")
    var format: OutputFormat = .text

    func validate() throws {
        if hold < 1 { throw ValidationError("--hold takes a positive number of milliseconds.") }
    }

    mutating func run() throws {
        InterruptSignals.install()
        let renderer = EventRenderer(format)
        let guest: BundledGuestMachine
        do {
            guest = try BundledGuestMachine()
            renderer.note("booting the bundled guest in QEMU")
            let banner = try guest.waitUntilReady()
            renderer.note("guest: \(banner)")
            renderer.note("$ vigil attach \(guest.target) --hold \(hold)")
        } catch let error as GuestStartError {
            if case .programMissing = error { throw Failure.exit(error.description, .missingProgram) }
            throw Failure.exit(error.description, .demoFailed)
        }

        var story: DemoStory?
        try Failure.reporting {
            guard let target = Target(argument: guest.target) else { return }
            let machine = try target.connect()
            machine.wakeDescriptor = InterruptSignals.readEnd
            var options = EngineOptions()
            options.guardOptions = PowerGuardOptions(hold: .milliseconds(hold))
            let engine = Engine(machine, options: options, report: renderer.render)
            let running = DemoStory(guest: guest, engine: engine, hold: .milliseconds(hold), note: renderer.note)
            story = running
            renderer.observer = running.observe
            running.begin()
            defer {
                running.end()
                renderer.observer = nil
            }
            try engine.run()
        }
        guard let story else { return }
        let chapters = story.chapters
        renderer.print(line: summary(chapters, format))
        if chapters.contains(where: { !$0.passed }) || chapters.count < DemoStory.length {
            throw VigilExit.demoFailed.exitCode
        }
    }

    private func summary(_ chapters: [DemoStory.Chapter], _ format: OutputFormat) -> String {
        let passed = chapters.count { $0.passed }
        switch format {
        case .json:
            var line = JSONLine(event: "demo-summary")
            line.add("passed", passed)
            line.add("expected", DemoStory.length)
            line.add("chapters", chapters)
            return line.text
        case .text:
            let width = chapters.map(\.name.count).max() ?? 0
            let rows = chapters.map { chapter in
                "  \(chapter.passed ? "✓" : "✗") \(chapter.name.padding(toLength: width, withPad: " ", startingAt: 0))  \(chapter.seen)"
            }
            return
                (["", "What was asked of the guest, and what Vigil saw:", ""] + rows
                + ["", "\(passed) of \(DemoStory.length) as expected."]).joined(separator: "\n")
        }
    }
}
