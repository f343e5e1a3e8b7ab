// swift-tools-version: 6.2
import PackageDescription

let settings: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .treatAllWarnings(as: .error),
]

/// A module of the product, from `Sources/NAME`.
func module(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
    .target(name: name, dependencies: dependencies, swiftSettings: settings)
}

/// The tests of one module, from `Tests/NAMETests`.
func tests(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
    .testTarget(
        name: "\(name)Tests", dependencies: [.byName(name: name), "TestSupport"] + dependencies,
        swiftSettings: settings)
}

let package = Package(
    name: "vigil",
    products: [
        .executable(name: "vigil", targets: ["vigil"]),
        .library(name: "Vigil", targets: ["Introspection"]),
        .library(name: "VigilQEMU", targets: ["QEMUHypervisor"]),
        .library(name: "VigilMemoryImage", targets: ["MemoryImage"]),
        .library(name: "VigilBundledGuest", targets: ["BundledGuest"]),
        // Made-up guests, for the fuzzers.
        .library(name: "VigilTestSupport", targets: ["TestSupport"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.2"),
    ],
    targets: [
        // What Swift cannot call or say: the decoder library, cmsg macros, the handler's machine code.
        .systemLibrary(name: "CZydis", providers: [.apt(["libzydis-dev"])]),
        .target(name: "CLinux"),
        .target(name: "CDetourHandler"),

        module("X86", ["CZydis"]),
        module("GuestMemory", ["X86", "CLinux"]),
        module("HypervisorInterface", ["GuestMemory", "X86"]),
        module(
            "WindowsGuest",
            ["HypervisorInterface", "GuestMemory", "X86", .product(name: "Yams", package: "Yams")]),
        module("Detours", ["WindowsGuest", "HypervisorInterface", "GuestMemory", "X86", "CDetourHandler"]),
        .target(
            name: "Agents",
            dependencies: ["Detours", "WindowsGuest", "HypervisorInterface", "GuestMemory", "X86"],
            swiftSettings: settings, plugins: ["BuildGuest"]),
        module("PowerTransitions", ["Detours", "WindowsGuest", "HypervisorInterface", "GuestMemory", "X86"]),
        module(
            "Introspection",
            [
                "PowerTransitions", "Protections", "Agents", "Detours", "WindowsGuest", "HypervisorInterface",
                "GuestMemory", "X86", "HostProcesses",
            ]),
        module("Protections", ["WindowsGuest", "HypervisorInterface", "GuestMemory", "X86"]),
        module("HostProcesses", ["CLinux"]),
        module(
            "QEMUHypervisor",
            ["HypervisorInterface", "GuestMemory", "X86", "CLinux"]),

        module("MemoryImage", ["HypervisorInterface", "GuestMemory", "X86"]),

        .executableTarget(
            name: "vigil",
            dependencies: [
                "Introspection", "Agents", "Protections", "QEMUHypervisor", "MemoryImage", "BundledGuest",
                "HostProcesses",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: settings),

        // The guest that the demo and the tests boot, built from Guest/ by the plugin.
        .target(
            name: "BundledGuest", dependencies: ["HostProcesses"], swiftSettings: settings,
            plugins: ["BuildGuest"]),
        .executableTarget(name: "guest-builder", swiftSettings: settings),
        .plugin(name: "BuildGuest", capability: .buildTool(), dependencies: ["guest-builder"]),

        .target(
            name: "TestSupport", dependencies: ["HypervisorInterface", "WindowsGuest", "GuestMemory", "X86", "CLinux"],
            path: "Tests/TestSupport", swiftSettings: settings),
        // Runs the detour's handler in the tests' own process.
        .target(name: "CHandlerHarness", path: "Tests/CHandlerHarness"),
        tests("X86", ["WindowsGuest", "CHandlerHarness"]),
        tests("Detours", ["CDetourHandler", "CHandlerHarness", "HypervisorInterface", "WindowsGuest"]),
        tests(
            "Agents",
            [
                "BundledGuest", "Detours", "HypervisorInterface", "WindowsGuest", "X86", "GuestMemory",
                "CHandlerHarness",
            ]),
        tests("PowerTransitions", ["Detours", "HypervisorInterface"]),
        tests("Introspection", ["PowerTransitions", "Detours", "HypervisorInterface", "HostProcesses"]),
        tests("Protections", ["HypervisorInterface", "WindowsGuest", "GuestMemory"]),
        tests("QEMUHypervisor", ["HypervisorInterface", "CLinux"]),
        tests("MemoryImage", ["HypervisorInterface", "WindowsGuest", "Introspection", "GuestMemory", "X86"]),
        .testTarget(
            name: "IntegrationTests",
            dependencies: [
                "Agents", "BundledGuest", "HostProcesses", "QEMUHypervisor", "MemoryImage", "HypervisorInterface",
                "Introspection", "Protections", "WindowsGuest", "TestSupport", "vigil",
            ],
            swiftSettings: settings),
        tests("GuestMemory"),
        tests("WindowsGuest"),
    ]
)
