import HypervisorInterface
import Synchronization
import X86

@testable import QEMUHypervisor

/// A QEMU without a guest: its monitor and its gdbstub, with vCPUs that go where a test sends them.
final class FakeQEMU: @unchecked Sendable {
    /// QEMU's name for its run state.
    var status: String
    var registers = [Registers()]
    /// How often each site is set.
    var sites: [String: Int] = [:]
    /// Bytes written by physical address, in order.
    var writes: [(address: UInt64, bytes: [UInt8])] = []
    /// What lies in RAM, where it is not zero.
    var memory: [UInt64: UInt8] = [:]
    /// What the vCPUs do when the machine runs: true where one reaches a breakpoint.
    var onRun: (FakeQEMU) -> Bool = { _ in false }
    /// The operator of a standing machine starts it, and it stops at a breakpoint: called when one has been set.
    var onStandStill: ((FakeQEMU) -> Void)?
    /// What happens just before the next packet of this verb arrives.
    var beforePacket: (verb: String, happens: (FakeQEMU) -> Void)?
    /// What happens, and is said by an event of this name, after the run state was asked for so many times.
    var afterStatus: (count: Int, event: String, happens: (FakeQEMU) -> Void)?
    /// What changed the run state.
    var log: [String] = []
    private var selected = 1
    /// One conversation at a time touches what is above.
    private let lock = Mutex(())
    private(set) var monitor: ScriptedPeer!
    private(set) var debug: ScriptedPeer!

    init(status: String) { self.status = status }

    /// Opens both connections.
    func start() {
        monitor = ScriptedPeer { peer in while self.answerCommand(peer) {} }
        debug = ScriptedPeer { peer in while self.answerPacket(peer) {} }
    }

    /// Waits until the client has closed its ends.
    func finish() {
        monitor.finish()
        debug.finish()
    }

    private func answerCommand(_ peer: ScriptedPeer) -> Bool {
        guard let command = peer.nextCommand() else { return false }
        lock.withLock { _ in
            let line = command.arguments?["command-line"]?.string
            let value = command.name == "query-status" ? "{\"status\": \"\(status)\"}" : line == nil ? "{}" : "\"\""
            if command.name != "query-status" { log.append(line ?? command.name) }
            if command.name == "cont" { status = "running" }
            peer.send("{\"return\": \(value), \"id\": \"\(command.id)\"}\r\n")
            if command.name == "query-status" { countStatus(peer) }
        }
        return true
    }

    private func countStatus(_ peer: ScriptedPeer) {
        guard let next = afterStatus else { return }
        afterStatus?.count -= 1
        if next.count > 1 { return }
        afterStatus = nil
        next.happens(self)
        peer.send("{\"event\": \"\(next.event)\"}\r\n")
    }

    private func answerPacket(_ peer: ScriptedPeer) -> Bool {
        guard let packet = peer.nextPacket() else { return false }
        lock.withLock { _ in
            if let next = beforePacket, packet.hasPrefix(next.verb) {
                beforePacket = nil
                next.happens(self)
            }
            if status == "running" {
                // Whatever arrives stops a running machine, and is swallowed.
                status = "paused"
                peer.reply("T02thread:01;")
            } else if let answer = answer(packet) {
                peer.reply(answer)
            } else if packet != "^C" {
                peer.send("+")
            }
        }
        return true
    }

    private func answer(_ packet: String) -> String? {
        switch packet {
        case "^C": return nil
        case "vCont?": return "vCont;c;C;s;S"
        case "qC": return "QC01"
        case "qSupported": return "PacketSize=1000;qXfer:features:read+"
        case "qXfer:features:read::0,1": return "E00"
        case "qfThreadInfo": return "m" + (1...registers.count).map { "0\($0)" }.joined(separator: ",")
        case "qsThreadInfo": return "l"
        case "g":
            return String(decoding: GDBPacket.hex(DescriptionSample.packet(registers[selected - 1])), as: UTF8.self)
        case "c":
            log.append("c")
            status = "running"
            guard onRun(self) else { return nil }
            status = "debug"
            return "T05thread:01;"
        default: break
        }
        if packet.hasPrefix("m") {
            let parts = packet.dropFirst().split(separator: ",").map { UInt64($0, radix: 16) ?? 0 }
            return String(decoding: GDBPacket.hex((0..<parts[1]).map { memory[parts[0] + $0] ?? 0 }), as: UTF8.self)
        }
        if packet.hasPrefix("qXfer") { return ResynchroniseTests.part(packet) }
        if packet.hasPrefix("Hg") {
            selected = Int(packet.dropFirst(2), radix: 16) ?? 1
        } else if packet.hasPrefix("vCont;s:") {
            registers[(Int(packet.dropFirst(8), radix: 16) ?? 1) - 1].rip += 4
            return "T05thread:01;"
        } else if packet.hasPrefix("P") {
            let parts = packet.dropFirst().split(separator: "=")
            let number = Int(parts[0], radix: 16) ?? -1
            let bytes = GDBPacket.bytes(fromHex: Array(parts[1].utf8)) ?? []
            DescriptionSample.set(number, of: &registers[selected - 1], to: bytes)
        } else if packet.hasPrefix("Z") {
            sites[String(packet.dropFirst()), default: 0] += 1
            if let happens = onStandStill {
                onStandStill = nil
                happens(self)
                status = "debug"
                monitor.send("{\"event\": \"RESUME\"}\r\n")
                debug.reply("OK")
                return "T05thread:01;"
            }
        } else if packet.hasPrefix("z") {
            guard let count = sites[String(packet.dropFirst())], count > 0 else { return "E22" }
            sites[String(packet.dropFirst())] = count - 1
        } else if packet.hasPrefix("M") {
            let parts = packet.dropFirst().split(separator: ":")
            let place = UInt64(parts[0].split(separator: ",")[0], radix: 16) ?? 0
            let bytes = GDBPacket.bytes(fromHex: Array(parts[1].utf8)) ?? []
            writes.append((place, bytes))
            for (offset, byte) in bytes.enumerated() { memory[place + UInt64(offset)] = byte }
        }
        return "OK"
    }
}
