// swift-tools-version: 6.2
import PackageDescription

// A package of its own, so that the product carries no fuzzer. Built by `make fuzz`.
let package = Package(
    name: "vigil-fuzzing",
    dependencies: [.package(name: "vigil", path: "..")],
    targets: [
        .executableTarget(
            name: "vigil-fuzz-image",
            dependencies: [.product(name: "VigilMemoryImage", package: "vigil")],
            swiftSettings: [
                .swiftLanguageMode(.v6), .treatAllWarnings(as: .error),
                // libFuzzer has the entry point.
                .unsafeFlags(["-parse-as-library"]),
            ])
    ]
)
