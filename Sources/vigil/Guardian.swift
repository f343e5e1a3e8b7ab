import ArgumentParser
import QEMUHypervisor

/// The process that takes everything back when Vigil dies. Started by Vigil, never by a user.
struct Guardian: ParsableCommand {
    static let name = "guardian"
    static let configuration = CommandConfiguration(commandName: name, abstract: "Vigil's own.", shouldDisplay: false)

    mutating func run() throws { throw ExitCode(GuardianProcess.run()) }
}
