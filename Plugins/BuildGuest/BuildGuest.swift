import Foundation
import PackagePlugin

/// Builds the bundled guest from `Guest/` and hands its images to the target
/// that applies this plugin, as resources. Runs again when a file below
/// `Guest/` changes.
@main
struct BuildGuest: BuildToolPlugin {
    /// Every file that guest-builder makes.
    static let artifacts =
        ["loader", "ntdll.dll", "app.exe"]
        + ["O0", "O2", "Os"].flatMap { optimization in
            ["direct", "deep"].map { "ntoskrnl-\(optimization)-\($0).exe" }
        }

    func createBuildCommands(context: PluginContext, target: Target) throws -> [Command] {
        let sources = context.package.directoryURL.appending(path: "Guest")
        let output = context.pluginWorkDirectoryURL.appending(path: "Guest")
        let builder = try context.tool(named: "guest-builder").url
        var arguments = ["--sources", sources.path, "--output", output.path]
        // The toolchain that builds the package also builds the guest; without
        // this, guest-builder looks beside `swift` and on the PATH.
        if let clang = try? context.tool(named: "clang").url {
            arguments += ["--clang", clang.path]
        }
        return [
            .buildCommand(
                displayName: "Building the bundled guest",
                executable: builder,
                arguments: arguments,
                inputFiles: inputs(below: sources),
                outputFiles: Self.artifacts.map { output.appending(path: $0) })
        ]
    }

    private func inputs(below folder: URL) -> [URL] {
        let suffixes = ["c", "h", "S", "inc", "def", "ld"]
        let files = FileManager.default.enumerator(at: folder, includingPropertiesForKeys: nil)
        return (files?.compactMap { $0 as? URL } ?? [])
            .filter { suffixes.contains($0.pathExtension) }
            .sorted { $0.path < $1.path }
    }
}
