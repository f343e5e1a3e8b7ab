import Foundation

/// The whole build: sources in, artifacts out.
struct GuestBuild {
    let options: Options
    let toolchain: Toolchain
    private let objects: URL

    /// Flags for everything that becomes a PE image. No SSE: the kernel does
    /// not save it on its way in. Nothing that depends on time or place goes
    /// into the output.
    static let windowsFlags = [
        "-std=c17", "-ffreestanding", "-fno-stack-protector", "-mno-stack-arg-probe", "-fno-ident",
        "-fshort-wchar", "-mgeneral-regs-only", "-Wall", "-Wextra", "-Werror", "-Wno-multichar",
    ]

    /// What these flags are for one architecture. x64 has unwind tables, since
    /// Windows' images have them; x86 is compiled as Windows is: stdcall unless
    /// something else is said, with frames, and with room to patch.
    static func windowsFlags(_ architecture: Architecture) -> [String] {
        switch architecture {
        case .x64: ["--target=x86_64-pc-windows-msvc", "-fasynchronous-unwind-tables", "-mno-red-zone"] + windowsFlags
        case .x86, .x86PAE:
            ["--target=i686-pc-windows-msvc", "-march=pentium3", "-mrtd", "-fno-omit-frame-pointer", "-fms-hotpatch"]
                + windowsFlags + (architecture == .x86PAE ? ["-DVIGIL_PAE"] : [])
        }
    }

    static let loaderFlags = [
        "--target=x86_64-unknown-none-elf", "-std=c17", "-ffreestanding", "-fno-pic",
        "-mcmodel=small", "-fno-stack-protector", "-fno-ident", "-mno-red-zone",
        "-mgeneral-regs-only", "-Wall", "-Wextra", "-Werror", "-O2",
    ]

    /// Agents run wherever they lie in the guest's memory, and are flat images without a loader.
    static let agentFlags = [
        "--target=x86_64-unknown-none-elf", "-std=c17", "-ffreestanding", "-fpie",
        "-mcmodel=small", "-fno-stack-protector", "-fno-ident", "-fno-asynchronous-unwind-tables",
        "-mno-red-zone", "-mgeneral-regs-only", "-fno-jump-tables", "-Wall", "-Wextra", "-Werror", "-O2",
    ]

    /// Every agent is a folder of its own in `agents`, beside what they have in common.
    static let agents = ["heartbeat", "ptfilter"]

    /// Kernel sources that differ between the two shapes of re-entry; all
    /// others are compiled once for each architecture and optimisation.
    static let shapedSources: Set = ["NtSetSystemPowerState.c", "reentry.c", "variant.c"]

    /// What Windows exports on x86 beside the list in `ntoskrnl.def`.
    static let exportsOfX86 = ["/export:IoThreadToProcess", "/export:KeServiceDescriptorTable,DATA"]

    /// Linked last, and made as large as the rules for `.text` need.
    static let paddingSource = "padding.S"

    init(options: Options, toolchain: Toolchain) throws {
        self.options = options
        self.toolchain = toolchain
        objects = options.output.appendingPathComponent("objects", isDirectory: true)
        try? FileManager.default.removeItem(at: objects)
        try FileManager.default.createDirectory(at: objects, withIntermediateDirectories: true)
    }

    func run() async throws {
        switch options.product {
        case .guest: try await buildGuest()
        case .agents: try await buildAgents()
        }
        try FileManager.default.removeItem(at: objects)
    }

    private func buildGuest() async throws {
        let loader = try compileLoader()
        let users = try [Architecture.x64, .x86].map { ($0, try compileUser($0)) }
        let kernel = try compileKernel()
        try await Command.runAll(
            loader.commands + users.flatMap(\.1.commands) + kernel.commands, jobs: options.jobs)

        try linkLoader(loader.objects)
        for (architecture, user) in users { try linkUser(architecture, user.objects) }
        for variant in Variant.all {
            try linkKernel(variant, kernel.objects[variant] ?? [])
        }
    }

    /// C and assembly files below a folder of the guest, in a fixed order; of
    /// what depends on the architecture, only its own.
    private func sources(_ folder: String, _ architecture: Architecture = .x64) throws -> [URL] {
        let root = options.sources.appendingPathComponent(folder, isDirectory: true)
        let files = FileManager.default.enumerator(at: root, includingPropertiesForKeys: nil)
        let found = (files?.compactMap { $0 as? URL } ?? [])
            .filter { ["c", "S"].contains($0.pathExtension) }
            .filter { !$0.path.contains("/arch/") || $0.path.contains("/arch/\(architecture.folder)/") }
            .sorted { $0.path < $1.path }
        guard !found.isEmpty else { throw BuildError.missingSources(root.path) }
        return found
    }

    private func compile(_ source: URL, flags: [String], suffix: String) -> (Command, URL) {
        let object = objects.appendingPathComponent(
            "\(source.lastPathComponent).\(suffix).o")
        let arguments = flags + ["-c", source.path, "-o", object.path]
        return (Command(tool: toolchain.clang, arguments: arguments), object)
    }

    private func artifact(_ name: String) -> String {
        options.output.appendingPathComponent(name).path
    }
}

// MARK: - The loader and the programs

extension GuestBuild {
    private func compileAll(
        _ folder: String, _ architecture: Architecture = .x64, flags: [String]
    ) throws -> (commands: [Command], objects: [URL]) {
        let suffix = folder.replacingOccurrences(of: "/", with: "-") + architecture.programSuffix
        let pairs = try sources(folder, architecture).map { compile($0, flags: flags, suffix: suffix) }
        return (pairs.map(\.0), pairs.map(\.1))
    }

    private func compileLoader() throws -> (commands: [Command], objects: [URL]) {
        try compileAll("loader", flags: Self.loaderFlags)
    }

    private func linkLoader(_ loader: [URL]) throws {
        let script = options.sources.appendingPathComponent("loader/loader.ld").path
        try Command(
            tool: toolchain.ldLld,
            arguments: ["-T", script, "--oformat", "binary", "-o", artifact("loader")]
                + loader.map(\.path)
        ).run()
    }

    private func compileUser(
        _ architecture: Architecture
    ) throws -> (commands: [Command], objects: [String: [URL]]) {
        let flags = Self.windowsFlags(architecture) + ["-O2"]
        let ntdll = try compileAll("ntdll", architecture, flags: flags)
        let app = try compileAll("app", architecture, flags: flags)
        return (
            ntdll.commands + app.commands, ["ntdll": ntdll.objects, "app": app.objects]
        )
    }

    private func linkUser(_ architecture: Architecture, _ user: [String: [URL]]) throws {
        let suffix = architecture.programSuffix
        let library = objects.appendingPathComponent("ntdll\(suffix).lib").path
        let is64 = architecture == .x64
        try link(
            architecture, artifact("ntdll\(suffix).dll"), named: "ntdll.dll",
            [
                "/dll", "/noentry", "/base:\(is64 ? "0x180000000" : "0x10000000")", "/implib:\(library)",
            ] + (user["ntdll"] ?? []).map(\.path))
        try link(
            architecture, artifact("app\(suffix).exe"), named: "app.exe",
            [
                "/subsystem:native", "/entry:ProgramEntry", "/base:\(is64 ? "0x140000000" : "0x400000")",
                library,
            ] + (user["app"] ?? []).map(\.path))
    }

    /// Links a PE image. Its export directory, and whoever imports from it, take its
    /// name from the file that the linker writes; that is moved to its place then.
    private func link(
        _ architecture: Architecture, _ output: String, named name: String, _ arguments: [String]
    ) throws {
        let place = objects.appendingPathComponent(URL(fileURLWithPath: output).lastPathComponent + ".image")
        let linked = place.appendingPathComponent(name)
        try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
        try Command(
            tool: toolchain.lldLink,
            arguments: ["/nologo", "/nodefaultlib", "/Brepro", "/out:\(linked.path)"]
                + (architecture == .x64 ? [] : ["/safeseh:no"]) + arguments
        ).run()
        try? FileManager.default.removeItem(atPath: output)
        try FileManager.default.moveItem(atPath: linked.path, toPath: output)
    }
}

// MARK: - The agents

extension GuestBuild {
    private func buildAgents() async throws {
        let common = try compileAll("agents/common", flags: Self.agentFlags)
        let agents = try Self.agents.map { name in
            (name, try compileAll("agents/\(name)", flags: Self.agentFlags))
        }
        try await Command.runAll(common.commands + agents.flatMap(\.1.commands), jobs: options.jobs)
        for (name, agent) in agents { try linkAgent(name, common.objects + agent.objects) }
    }

    private func linkAgent(_ name: String, _ agent: [URL]) throws {
        let script = options.sources.appendingPathComponent("agents/common/agent.ld").path
        try Command(
            tool: toolchain.ldLld,
            arguments: ["-T", script, "--oformat", "binary", "-o", artifact("\(name).agent")] + agent.map(\.path)
        ).run()
    }
}

// MARK: - The kernel

extension GuestBuild {
    /// The objects of every variant, and the commands that make them.
    struct KernelObjects {
        var commands: [Command] = []
        var objects: [Variant: [URL]] = [:]
    }

    private func flags(_ variant: Variant) -> [String] {
        let optimization = variant.optimization.rawValue
        let include = options.sources.appendingPathComponent("kernel/arch/\(variant.architecture.folder)/include")
        return Self.windowsFlags(variant.architecture)
            + ["-I\(include.path)", "-\(optimization)", "-DVIGIL_OPTIMIZATION=\"\(optimization)\""]
            + ["-DVIGIL_VARIANT_PREFIX=\"\(variant.architecture.prefix)\""]
            + (variant.reentry == .deep ? ["-DVIGIL_REENTRY_DEEP"] : [])
    }

    private func compileKernel() throws -> KernelObjects {
        var kernel = KernelObjects()
        for variant in Variant.all where variant.reentry == .direct {
            let deep = Variant(architecture: variant.architecture, optimization: variant.optimization, reentry: .deep)
            let all = try sources("kernel", variant.architecture)
                .filter { $0.lastPathComponent != Self.paddingSource }
            for source in all {
                let isShaped = Self.shapedSources.contains(source.lastPathComponent)
                let (command, object) = compile(source, flags: flags(variant), suffix: variant.name)
                kernel.commands.append(command)
                kernel.objects[variant, default: []].append(object)
                guard isShaped else {
                    kernel.objects[deep, default: []].append(object)
                    continue
                }
                let (deepCommand, deepObject) = compile(source, flags: flags(deep), suffix: deep.name)
                kernel.commands.append(deepCommand)
                kernel.objects[deep, default: []].append(deepObject)
            }
        }
        return kernel
    }

    /// Links an image; where the last page of `.text` has too little room left,
    /// pads `.text` into the next page and links again.
    private func linkKernel(_ variant: Variant, _ objects: [URL]) throws {
        try linkKernel(variant, objects, padding: 0)
        let output = URL(fileURLWithPath: artifact(variant.imageName))
        var image = try PortableImage(contentsOf: output)
        let slack = try image.section(".text").slack
        if slack < KernelRules.minimumSlack {
            try linkKernel(variant, objects, padding: slack + 64)
            image = try PortableImage(contentsOf: output)
        }
        try KernelRules.check(image)
    }

    private func linkKernel(_ variant: Variant, _ objects: [URL], padding: Int) throws {
        let source = options.sources.appendingPathComponent("kernel/\(Self.paddingSource)")
        let (command, object) = compile(
            source, flags: flags(variant) + ["-DVIGIL_TEXT_PADDING=\(padding)"],
            suffix: variant.name)
        try command.run()
        let exports = options.sources.appendingPathComponent("kernel/ntoskrnl.def").path
        let is64 = variant.architecture == .x64
        try link(
            variant.architecture, artifact(variant.imageName), named: variant.architecture.kernelName,
            [
                "/subsystem:native", "/driver", "/entry:KiSystemStartup",
                "/base:\(is64 ? "0x140000000" : "0x400000")", "/dynamicbase", "/section:INIT,ERD",
                "/def:\(exports)", "/noimplib", "/map:\(artifact(variant.mapName))",
            ] + (is64 ? [] : Self.exportsOfX86)
                + (objects + [object]).map(\.path))
    }
}
