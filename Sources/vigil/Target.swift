import ArgumentParser
import Foundation
import HypervisorInterface
import QEMUHypervisor

/// The guest that a command works on, as the user writes it.
struct Target: ExpressibleByArgument {
    let qemu: QEMUTarget

    init?(argument: String) {
        guard argument.hasPrefix("qemu:"), argument.count > 5 else { return nil }
        qemu = QEMUTarget(String(argument.dropFirst(5)))
    }

    static let help = ArgumentHelp(
        "The guest: qemu:PATH with the path of QEMU's QMP socket, or qemu:HOST:PORT.", valueName: "target")

    /// Connects. The guardian is this same program.
    func connect() throws(HypervisorError) -> QEMUMachine {
        let link = "/proc/self/exe"
        let program = (try? FileManager.default.destinationOfSymbolicLink(atPath: link)) ?? link
        return try QEMUMachine(qemu, guardianCommand: [program, Guardian.name])
    }
}
