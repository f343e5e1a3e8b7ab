import BundledGuest
import Foundation
import HypervisorInterface
import Testing

@testable import QEMUHypervisor

/// Tests that start a real QEMU. One at a time: two cores carry no more.
@Suite(.serialized)
enum Integration {}

/// What an operator could see of a QEMU by its QMP socket.
struct Operator {
    let qmp: QMPClient

    init(_ guest: BundledGuestMachine) throws {
        let target = QEMUTarget(String(guest.target.dropFirst("qemu:".count)))
        qmp = QMPClient(socket: try target.connect(), pulse: Pulse(), idPrefix: "operator")
        _ = try qmp.negotiate(target: target.description)
    }

    /// On a QMP socket of its own.
    init(path: String) throws {
        let target = QEMUTarget.unix(path: path)
        qmp = QMPClient(socket: try target.connect(), pulse: Pulse(), idPrefix: "operator")
        _ = try qmp.negotiate(target: target.description)
    }

    /// Runs a QMP command.
    func command(_ name: String) throws { try qmp.execute(name) }

    /// Bytes that the guest's kernel has at a virtual address.
    func code(at address: UInt64, count: Int) throws -> [UInt8] {
        let text = try qmp.monitor("x /\((count + 7) / 8)xg 0x\(String(address, radix: 16))")
        return Array(MonitorText.dumpedBytes(text).prefix(count))
    }

    func runState() throws -> RunState { try QEMUMachine.runState(qmp) }

    func chardevs() throws -> [String] {
        (try qmp.execute("query-chardev").array ?? []).compactMap { $0["label"]?.string }.sorted()
    }

    func events() -> [String] {
        qmp.takeInput()
        var names: [String] = []
        while let event = qmp.takeEvent() { names.append(event.name) }
        return names
    }

    /// Where the guest is, for a failure's report.
    func describe() throws -> String {
        "\(try runState()), \(try chardevs())\n" + (try qmp.monitor("info registers")).prefix(700)
    }

    /// Waits for QEMU to say something, for a while.
    func waitForEvent() {
        _ = Socket.waitForInput([qmp.socket.descriptor], until: .now + .milliseconds(500))
        _ = events()
    }

    /// What an operator does whose debugger died: a new stub on a path, and a detach, which clears all
    /// breakpoints and lets the guest run.
    func clearBreakpointsByDetaching() throws {
        QEMUMachine.removeDebugConnection(qmp)
        let path = "/tmp/vigil-test-gdb-\(UInt32.random(in: .min ... .max))"
        defer { unlink(path) }
        try qmp.monitor("gdbserver unix:\(path),server=on,wait=off")
        let socket = try QEMUTarget.unix(path: path).connect()
        try socket.write(GDBPacket.frame("D"))
        while try runState() != .running { waitForEvent() }
    }

    /// All of the guest's RAM.
    func memory() throws -> [UInt8] {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("vigil-ram-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: file) }
        try qmp.execute("pmemsave", ["val": .integer(0), "size": .integer(128 << 20), "filename": .string(file.path)])
        return [UInt8](try Data(contentsOf: file))
    }
}

extension VigilProcess {
    /// Waits for the guardian's word: it could take everything back.
    func expectGuardianActed(sourceLocation: SourceLocation = #_sourceLocation) throws {
        let word = try errorLine(containing: "vigil guardian:", sourceLocation: sourceLocation)
        #expect(!word.contains("could not be"), "\(word)", sourceLocation: sourceLocation)
    }

    /// Whoever lets a stopped Vigil go on finds it knowing that it is out of the game.
    func expectAware(sourceLocation: SourceLocation = #_sourceLocation) {
        send(SIGCONT)
        #expect(exitStatus() == 10, "\(outputText)\(errorText)", sourceLocation: sourceLocation)
        #expect(errorText.contains("the guardian took over"), sourceLocation: sourceLocation)
    }
}

extension GuestConfiguration {
    /// What tests start: with VIGIL_TEST_ARCH in the environment a guest of that architecture.
    static let tested = {
        var configuration = GuestConfiguration()
        if let name = ProcessInfo.processInfo.environment["VIGIL_TEST_ARCH"] {
            guard let architecture = Architecture(rawValue: name) else { fatalError("VIGIL_TEST_ARCH is \(name)") }
            configuration.architecture = architecture
        }
        return configuration
    }()

    /// The tested guest has 32 bits.
    static var is32Bit: Bool { tested.architecture != .x64 }
}

extension Trait where Self == ConditionTrait {
    /// For what there is in 64-bit guests only: agents, and the handler that callers wait in.
    static var needs64Bit: Self { .disabled(if: GuestConfiguration.is32Bit, "the tested guest has 32 bits") }
}

extension BundledGuestMachine {
    /// Where the guest is, for a failure's report.
    func describe() throws -> String {
        var text = try Operator(self).describe()
        for command in ["ping", "counts", "check", "threads"] {
            let reply = try? console.run(command, within: .seconds(3))
            text += "\n\(command): \(reply.map { $0.result } ?? "no answer")"
        }
        return text + "\n" + console.log.suffix(4000)
    }

    /// Starts a guest and waits until it takes commands.
    static func ready(_ configuration: GuestConfiguration = GuestConfiguration.tested) throws -> BundledGuestMachine {
        let guest = try BundledGuestMachine(configuration)
        try guest.waitUntilReady()
        return guest
    }

    /// Shows that nothing of Vigil is in the guest: it runs, its code is as it was, a power call goes through
    /// unseen and its callee-saved registers survive, no debug connection is open, and a new Vigil can attach
    /// and sees a request.
    func expectNothingLeft(
        whileRunning: Bool = true, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        do {
            let seenByOperator = try Operator(self)
            #expect(try seenByOperator.runState() == .running, sourceLocation: sourceLocation)
            #expect(
                try !seenByOperator.chardevs().contains { $0.hasPrefix("vigil") || $0 == "gdb" },
                sourceLocation: sourceLocation)
            let check = try console.run("check")
            #expect(check.result.hasPrefix("ok clean"), "\(check.result)", sourceLocation: sourceLocation)
            _ = seenByOperator.events()
            // A breakpoint that was left would stop the guest here for good.
            try console.run("refuse on")
            let reply = try console.run("power user 5 6 0")
            #expect(reply["status"] == 0xC000_02D3, "\(reply.result)", sourceLocation: sourceLocation)
            #expect(
                seenByOperator.events().filter { $0 == "STOP" || $0 == "RESUME" }.isEmpty,
                sourceLocation: sourceLocation)
        }
        let vigil = try VigilProcess(["attach", target, "--format", "json"])
        _ = try vigil.event("attached", sourceLocation: sourceLocation)
        try console.run("power user 5 6 0")
        #expect(try vigil.event("outcome").string("result") == "refused", sourceLocation: sourceLocation)
        vigil.send(SIGTERM)
        #expect(vigil.exitStatus() == 0, sourceLocation: sourceLocation)
    }
}
