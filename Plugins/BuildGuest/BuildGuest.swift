import Foundation
import PackagePlugin

/// Builds the bundled guest from `Guest/`, or for the target `Agents` the agents, and hands the images to the
/// target that applies this plugin, as resources. Runs again when a file below `Guest/` changes.
@main
struct BuildGuest: BuildToolPlugin {
    static let agents = ["heartbeat.agent", "ptfilter.agent"]

    /// Every file of the guest that guest-builder makes.
    static let artifacts =
        ["loader", "ntdll.dll", "app.exe", "ntdll-x86.dll", "app-x86.exe"]
        + ["", "x86-pae-", "x86-"].flatMap { architecture in
            ["O0", "O2", "Os"].flatMap { optimization in
                ["direct", "deep"].flatMap { reentry in
                    ["exe", "map"].map { "ntoskrnl-\(architecture)\(optimization)-\(reentry).\($0)" }
                }
            }
        }

    func createBuildCommands(context: PluginContext, target: Target) throws -> [Command] {
        let isForAgents = target.name == "Agents"
        let sources = context.package.directoryURL.appending(path: "Guest")
        let output = context.pluginWorkDirectoryURL.appending(path: "Guest")
        let builder = try context.tool(named: "guest-builder").url
        var arguments = ["--sources", sources.path, "--output", output.path]
        arguments += ["--product", isForAgents ? "agents" : "guest"]
        // The toolchain that builds the package also builds the guest; without
        // this, guest-builder looks beside `swift` and on the PATH.
        if let clang = try? context.tool(named: "clang").url {
            arguments += ["--clang", clang.path]
        }
        return [
            .buildCommand(
                displayName: isForAgents ? "Building the agents" : "Building the bundled guest",
                executable: builder,
                arguments: arguments,
                inputFiles: inputs(below: isForAgents ? sources.appending(path: "agents") : sources),
                outputFiles: (isForAgents ? Self.agents : Self.artifacts).map { output.appending(path: $0) })
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
