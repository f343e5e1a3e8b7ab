import Foundation

/// The whole build: sources in, artifacts out.
struct GuestBuild {
    let options: Options
    let toolchain: Toolchain
    private let objects: URL

    /// Flags for everything that becomes a PE image. No SSE: the kernel does
    /// not save it on its way in. Unwind tables, since Windows' images have
    /// them. Nothing that depends on time or place goes into the output.
    static let windowsFlags = [
        "--target=x86_64-pc-windows-msvc", "-std=c17", "-ffreestanding",
        "-fasynchronous-unwind-tables", "-fno-stack-protector", "-mno-stack-arg-probe",
        "-fno-ident", "-fshort-wchar", "-mno-red-zone", "-mgeneral-regs-only",
        "-Wall", "-Wextra", "-Werror", "-Wno-multichar",
    ]

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
    /// others are compiled once for each optimisation.
    static let shapedSources: Set = ["NtSetSystemPowerState.c", "reentry.c", "variant.c"]

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
        let user = try compileUser()
        let kernel = try compileKernel()
        try await Command.runAll(
            loader.commands + user.commands + kernel.commands, jobs: options.jobs)

        try linkLoader(loader.objects)
        try linkUser(user.objects)
        for variant in Variant.all {
            try linkKernel(variant, kernel.objects(variant))
        }
    }

    /// C and assembly files below a folder of the guest, in a fixed order.
    private func sources(_ folder: String) throws -> [URL] {
        let root = options.sources.appendingPathComponent(folder, isDirectory: true)
        let files = FileManager.default.enumerator(at: root, includingPropertiesForKeys: nil)
        let found = (files?.compactMap { $0 as? URL } ?? [])
            .filter { ["c", "S"].contains($0.pathExtension) }
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
        _ folder: String, flags: [String]
    ) throws -> (commands: [Command], objects: [URL]) {
        let suffix = folder.replacingOccurrences(of: "/", with: "-")
        let pairs = try sources(folder).map { compile($0, flags: flags, suffix: suffix) }
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

    private func compileUser() throws -> (commands: [Command], objects: [String: [URL]]) {
        let ntdll = try compileAll("ntdll", flags: Self.windowsFlags + ["-O2"])
        let app = try compileAll("app", flags: Self.windowsFlags + ["-O2"])
        return (
            ntdll.commands + app.commands, ["ntdll": ntdll.objects, "app": app.objects]
        )
    }

    private func linkUser(_ user: [String: [URL]]) throws {
        let library = objects.appendingPathComponent("ntdll.lib").path
        try Command(
            tool: toolchain.lldLink,
            arguments: [
                "/nologo", "/dll", "/noentry", "/nodefaultlib", "/base:0x180000000", "/Brepro",
                "/out:\(artifact("ntdll.dll"))", "/implib:\(library)",
            ] + (user["ntdll"] ?? []).map(\.path)
        ).run()
        try Command(
            tool: toolchain.lldLink,
            arguments: [
                "/nologo", "/subsystem:native", "/nodefaultlib", "/entry:ProgramEntry",
                "/base:0x140000000", "/Brepro", "/out:\(artifact("app.exe"))", library,
            ] + (user["app"] ?? []).map(\.path)
        ).run()
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
        var shared: [Variant.Optimization: [URL]] = [:]
        var shaped: [Variant: [URL]] = [:]

        func objects(_ variant: Variant) -> [URL] {
            (shared[variant.optimization] ?? []) + (shaped[variant] ?? [])
        }
    }

    private func flags(_ variant: Variant) -> [String] {
        let optimization = variant.optimization.rawValue
        return Self.windowsFlags
            + ["-\(optimization)", "-DVIGIL_OPTIMIZATION=\"\(optimization)\""]
            + (variant.reentry == .deep ? ["-DVIGIL_REENTRY_DEEP"] : [])
    }

    private func compileKernel() throws -> KernelObjects {
        var kernel = KernelObjects()
        let all = try sources("kernel").filter { $0.lastPathComponent != Self.paddingSource }

        for optimization in Variant.Optimization.allCases {
            let common = Variant(optimization: optimization, reentry: .direct)
            for source in all where !Self.shapedSources.contains(source.lastPathComponent) {
                let (command, object) = compile(
                    source, flags: flags(common), suffix: optimization.rawValue)
                kernel.commands.append(command)
                kernel.shared[optimization, default: []].append(object)
            }
        }
        for variant in Variant.all {
            for source in all where Self.shapedSources.contains(source.lastPathComponent) {
                let (command, object) = compile(
                    source, flags: flags(variant), suffix: variant.imageName)
                kernel.commands.append(command)
                kernel.shaped[variant, default: []].append(object)
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
            suffix: variant.imageName)
        try command.run()
        let exports = options.sources.appendingPathComponent("kernel/ntoskrnl.def").path
        // The export directory takes the image's name from the file, and every kernel calls itself so.
        let linked = object.deletingPathExtension().appendingPathExtension("image")
            .appendingPathComponent("ntoskrnl.exe")
        try FileManager.default.createDirectory(
            at: linked.deletingLastPathComponent(), withIntermediateDirectories: true)
        try Command(
            tool: toolchain.lldLink,
            arguments: [
                "/nologo", "/subsystem:native", "/driver", "/nodefaultlib",
                "/entry:KiSystemStartup", "/base:0x140000000", "/dynamicbase",
                "/section:INIT,ERD", "/Brepro", "/def:\(exports)", "/noimplib",
                "/out:\(linked.path)",
            ] + (objects + [object]).map(\.path)
        ).run()
        let image = URL(fileURLWithPath: artifact(variant.imageName))
        try? FileManager.default.removeItem(at: image)
        try FileManager.default.moveItem(at: linked, to: image)
    }
}
