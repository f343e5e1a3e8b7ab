import BundledGuest
import CLimits
import Foundation
import HypervisorInterface
import QEMUHypervisor

/// The bundled guest, with a second QMP socket for the bare client: QEMU serves one client on each.
final class BenchmarkGuest {
    let machine: BundledGuestMachine
    /// Where the bare client connects.
    let clientPath: String
    private var symbols: [String: UInt64] = [:]

    init(sharesMemory: Bool) throws {
        clientPath = "/tmp/vigil-bench-\(getpid())-\(UInt32.random(in: .min ... .max))"
        var configuration = GuestConfiguration()
        configuration.sharesMemory = sharesMemory
        configuration.extraArguments = ["-qmp", "unix:\(clientPath),server=on,wait=off"]
        machine = try BundledGuestMachine(configuration)
        try machine.waitUntilReady()
        for line in try machine.console.run("symbols").lines {
            let words = line.split(separator: " ")
            if words.count == 2 { symbols[String(words[0])] = UInt64(words[1].dropFirst(2), radix: 16) }
        }
    }

    deinit { unlink(clientPath) }

    /// Where a function of the guest's kernel is, as the guest says itself.
    func address(of symbol: String) throws -> UInt64 {
        guard let address = symbols[symbol] else { throw BenchmarkError("the guest does not know \(symbol)") }
        return address
    }

    /// Connects as Vigil does.
    func connect(guardianCommand: [String]? = nil) throws -> QEMUMachine {
        try QEMUMachine(
            QEMUTarget(String(machine.target.dropFirst("qemu:".count))), guardianCommand: guardianCommand)
    }
}

/// The limit of everything that stops a guest: a client in C with nothing around it.
final class BareClient {
    private let client: OpaquePointer

    init(_ guest: BenchmarkGuest) throws {
        guard let client = limit_connect(guest.clientPath) else {
            throw BenchmarkError("the bare client cannot connect")
        }
        self.client = client
    }

    deinit { limit_close(client) }

    private func check(_ status: Int32, _ what: String) throws {
        if status != 0 { throw BenchmarkError("the bare client failed to \(what)") }
    }

    func arm(_ address: UInt64) throws { try check(limit_arm(client, address), "arm") }

    func disarm() throws { try check(limit_disarm(client), "disarm") }

    func roundTrips(_ count: Int) throws { try check(limit_round_trips(client, Int32(count)), "go round") }

    /// Watches from now on the word that the function that was armed is called with, instead of the function.
    func watchWrites() throws { try check(limit_watch(client), "watch") }

    func watchedWrites(_ count: Int) throws { try check(limit_watched(client, Int32(count)), "see writes") }

    /// In seconds.
    func hold(milliseconds: Int) throws -> Double {
        let time = limit_hold(client, Int32(milliseconds))
        guard time >= 0 else { throw BenchmarkError("the bare client failed to hold") }
        return Double(time) * 1e-9
    }

    /// Lets a call whose page was absent past the breakpoint a second time.
    func goOn(within milliseconds: Int) throws { try check(limit_go_on(client, Int32(milliseconds)), "go on") }

    /// How long the guest has stood still since this client connected, whoever stopped it. In seconds.
    func timeStoodStill() throws -> Double {
        let time = limit_stood_still(client)
        guard time >= 0 else { throw BenchmarkError("the guest was stopped and did not run on") }
        return Double(time) * 1e-6
    }
}
