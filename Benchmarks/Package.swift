// swift-tools-version: 6.2
import PackageDescription

// A package of its own, so that the product carries no benchmark code.
let settings: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .treatAllWarnings(as: .error),
]

let package = Package(
    name: "vigil-benchmarks",
    dependencies: [
        .package(name: "vigil", path: ".."),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    ],
    targets: [
        // The limits: the same work in C, with nothing around it.
        .target(name: "CLimits"),
        .executableTarget(
            name: "vigil-bench",
            dependencies: [
                "CLimits",
                .product(name: "Vigil", package: "vigil"),
                .product(name: "VigilQEMU", package: "vigil"),
                .product(name: "VigilBundledGuest", package: "vigil"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: settings),
    ]
)
