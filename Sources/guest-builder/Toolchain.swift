import Foundation

/// The compiler and the two linkers.
struct Toolchain: Sendable {
    let clang: URL
    /// Makes PE images.
    let lldLink: URL
    /// Makes the loader's flat binary.
    let ldLld: URL

    /// Finds the tools: beside the given clang, in the toolchain of the first
    /// `swift` on the PATH, then on the PATH itself.
    init(clang: URL?) throws {
        let path = ProcessInfo.processInfo.environment["PATH"] ?? ""
        let pathFolders = path.split(separator: ":").map {
            URL(fileURLWithPath: String($0), isDirectory: true)
        }
        var folders: [URL] = []
        if let clang {
            folders.append(clang.deletingLastPathComponent())
            folders.append(clang.resolvingSymlinksInPath().deletingLastPathComponent())
        }
        if let swift = Self.find("swift", in: pathFolders) {
            folders.append(swift.resolvingSymlinksInPath().deletingLastPathComponent())
        }
        folders += pathFolders

        func need(_ name: String) throws -> URL {
            guard let tool = Self.find(name, in: folders) else {
                throw BuildError.missingTool(name, lookedIn: folders.map(\.path))
            }
            return tool
        }
        if let clang, FileManager.default.isExecutableFile(atPath: clang.path) {
            self.clang = clang
        } else {
            self.clang = try need("clang")
        }
        self.lldLink = try need("lld-link")
        self.ldLld = try need("ld.lld")
    }

    private static func find(_ name: String, in folders: [URL]) -> URL? {
        folders.lazy
            .map { $0.appendingPathComponent(name) }
            .first { FileManager.default.isExecutableFile(atPath: $0.path) }
    }
}

/// A command to run to its end.
struct Command: Sendable {
    let tool: URL
    let arguments: [String]

    /// Runs it; fails, with what it printed, unless it exits with status 0.
    func run() throws {
        let process = Process()
        let pipe = Pipe()
        process.executableURL = tool
        process.arguments = arguments
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = pipe
        process.standardError = pipe
        try process.run()
        let output = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else {
            throw BuildError.failed(
                command: ([tool.path] + arguments).joined(separator: " "),
                status: process.terminationStatus,
                output: String(decoding: output, as: UTF8.self))
        }
    }

    /// Runs all of them, at most `jobs` at a time; the first failure ends it.
    static func runAll(_ commands: [Command], jobs: Int) async throws {
        try await withThrowingTaskGroup(of: Void.self) { group in
            var waiting = commands.makeIterator()
            for _ in 0..<jobs {
                if let command = waiting.next() { group.addTask { try command.run() } }
            }
            while try await group.next() != nil {
                if let command = waiting.next() { group.addTask { try command.run() } }
            }
        }
    }
}
