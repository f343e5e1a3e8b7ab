import ArgumentParser

/// How a command says what happens.
enum OutputFormat: String, ExpressibleByArgument, CaseIterable {
    case text
    /// One JSON object on each line.
    case json
}
