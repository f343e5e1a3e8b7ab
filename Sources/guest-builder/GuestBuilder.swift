import Foundation

/// Builds the bundled guest from its sources, with the Swift toolchain's own
/// clang and linkers. Run by the `BuildGuest` plugin; by hand, too.
@main
struct GuestBuilder {
    static func main() async {
        do {
            let options = try Options(CommandLine.arguments.dropFirst())
            let toolchain = try Toolchain(clang: options.clang)
            let build = try GuestBuild(options: options, toolchain: toolchain)
            try await build.run()
        } catch {
            FileHandle.standardError.write(Data("guest-builder: \(error)\n".utf8))
            exit(1)
        }
    }
}

/// The command line.
struct Options {
    static let usage = """
        usage: guest-builder --sources GUEST-FOLDER --output FOLDER [--product guest|agents] [--clang PATH] [--jobs N]
        """

    enum Product: String {
        case guest, agents
    }

    /// The folder `Guest` of the package.
    let sources: URL
    /// Where the artifacts go; made if it is missing.
    let output: URL
    /// What to build; the guest, if nothing else was asked for.
    let product: Product
    /// The compiler to use; the linkers are looked for beside it first.
    let clang: URL?
    /// How many compilers run at a time.
    let jobs: Int

    init(_ arguments: some Sequence<String>) throws {
        var values: [String: String] = [:]
        var iterator = arguments.makeIterator()
        while let name = iterator.next() {
            guard ["--sources", "--output", "--product", "--clang", "--jobs"].contains(name),
                let value = iterator.next()
            else { throw BuildError.usage("\(name) is not understood\n\(Self.usage)") }
            values[name] = value
        }
        guard let sources = values["--sources"], let output = values["--output"] else {
            throw BuildError.usage("--sources and --output are needed\n\(Self.usage)")
        }
        guard let product = Product(rawValue: values["--product"] ?? "guest") else {
            throw BuildError.usage("--product is guest or agents\n\(Self.usage)")
        }
        self.product = product
        self.sources = URL(fileURLWithPath: sources, isDirectory: true)
        self.output = URL(fileURLWithPath: output, isDirectory: true)
        self.clang = values["--clang"].map { URL(fileURLWithPath: $0) }
        self.jobs = max(1, values["--jobs"].flatMap { Int($0) } ?? 2)
    }
}

/// What can go wrong; the description is the message.
enum BuildError: Error, CustomStringConvertible {
    case usage(String)
    case missingTool(String, lookedIn: [String])
    case missingSources(String)
    case failed(command: String, status: Int32, output: String)
    case badImage(file: String, reason: String)

    var description: String {
        switch self {
        case .usage(let text):
            return text
        case .missingTool(let name, let folders):
            return "\(name) was not found. It is part of the Swift toolchain for Linux; "
                + "looked in \(folders.joined(separator: ", ")). Give its place with --clang."
        case .missingSources(let folder):
            return "there are no sources in \(folder)"
        case .failed(let command, let status, let output):
            return "this command failed with status \(status):\n\(command)\n\(output)"
        case .badImage(let file, let reason):
            return "\(file): \(reason)"
        }
    }
}
