import ArgumentParser
import Foundation
import HypervisorInterface
import QEMUHypervisor

/// The guest that a command works on, as the user writes it.
enum Target: ExpressibleByArgument, CustomStringConvertible {
    case qemu(QEMUTarget)
    /// A memory image's file.
    case image(path: String)

    init?(argument: String) {
        guard let colon = argument.firstIndex(of: ":") else {
            guard !argument.isEmpty else { return nil }
            self = .image(path: argument)
            return
        }
        let kind = argument[..<colon]
        let rest = argument[argument.index(after: colon)...]
        if kind == "qemu" {
            guard !rest.isEmpty else { return nil }
            self = .qemu(QEMUTarget(String(rest)))
        } else if kind.contains("/") {
            self = .image(path: argument)
        } else {
            // A kind of target that there is not (yet). A file of such a name can be written ./NAME.
            return nil
        }
    }

    var description: String {
        switch self {
        case .qemu(let target): target.description
        case .image(let path): path
        }
    }

    static let help = ArgumentHelp(
        """
        The guest: qemu:PATH with the path of QEMU's QMP socket, or qemu:HOST:PORT. For inspect also the path of a \
        memory image.
        """, valueName: "target")

    /// Connects to a machine that runs. The guardian is this same program.
    /// - Throws: `notControllable` for a memory image.
    func connect() throws(HypervisorError) -> QEMUMachine {
        guard case .qemu(let target) = self else { throw .notControllable(target: description) }
        let link = "/proc/self/exe"
        let program = (try? FileManager.default.destinationOfSymbolicLink(atPath: link)) ?? link
        return try QEMUMachine(target, guardianCommand: [program, Guardian.name])
    }
}
