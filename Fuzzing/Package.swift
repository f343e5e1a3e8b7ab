// swift-tools-version: 6.2
import PackageDescription

/// A fuzzer, from `Sources/NAME`.
func fuzzer(_ name: String, _ product: String) -> Target {
    .executableTarget(
        name: name, dependencies: [.product(name: product, package: "vigil")],
        swiftSettings: [
            .swiftLanguageMode(.v6), .treatAllWarnings(as: .error),
            // libFuzzer has the entry point.
            .unsafeFlags(["-parse-as-library"]),
        ])
}

// A package of its own, so that the product carries no fuzzer. Built by `make fuzz`.
let package = Package(
    name: "vigil-fuzzing",
    dependencies: [.package(name: "vigil", path: "..")],
    targets: [
        fuzzer("vigil-fuzz-image", "VigilMemoryImage"),
        fuzzer("vigil-fuzz-kernel", "VigilTestSupport"),
    ]
)
