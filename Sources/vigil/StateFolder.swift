import Foundation

/// Where Vigil keeps what has to outlive a session.
enum StateFolder {
    /// The folder for it, by the XDG base directory specification. It need not exist yet.
    static var standard: String {
        let environment = ProcessInfo.processInfo.environment
        // Relative paths are to be ignored, says the specification.
        if let home = environment["XDG_STATE_HOME"], home.hasPrefix("/") { return home + "/vigil" }
        return (environment["HOME"] ?? NSHomeDirectory()) + "/.local/state/vigil"
    }
}
