/// What the guest is built for.
enum Architecture: String, CaseIterable, Sendable {
    case x64
    /// Page tables of three levels and 8-byte entries (physical address extension).
    case x86PAE = "x86-pae"
    /// Page tables of two levels and 4-byte entries.
    case x86

    /// The folder below each `arch` that belongs to it.
    var folder: String { self == .x64 ? "x64" : "x86" }
    /// What names of its kernels have between `ntoskrnl-` and the optimisation.
    var prefix: String { self == .x64 ? "" : "\(rawValue)-" }
    /// What names of its programs end with.
    var programSuffix: String { self == .x64 ? "" : "-x86" }
    /// What the kernel calls itself in its export directory, as on Windows.
    var kernelName: String { self == .x86PAE ? "ntkrnlpa.exe" : "ntoskrnl.exe" }
}

/// One build of the kernel: what for, how it is optimised, and how its
/// `NtSetSystemPowerState` re-enters itself for a user-mode caller.
struct Variant: Sendable, Hashable {
    enum Optimization: String, CaseIterable, Sendable {
        case none = "O0"
        case speed = "O2"
        case size = "Os"
    }

    enum Reentry: String, CaseIterable, Sendable {
        /// `NtSetSystemPowerState` calls the Zw stub itself.
        case direct
        /// Two functions lie between.
        case deep
    }

    let architecture: Architecture
    let optimization: Optimization
    let reentry: Reentry

    static var all: [Variant] {
        Architecture.allCases.flatMap { architecture in
            Optimization.allCases.flatMap { optimization in
                Reentry.allCases.map {
                    Variant(architecture: architecture, optimization: optimization, reentry: $0)
                }
            }
        }
    }

    var name: String { "\(architecture.prefix)\(optimization.rawValue)-\(reentry.rawValue)" }
    var imageName: String { "ntoskrnl-\(name).exe" }
    /// Where the linker put each symbol.
    var mapName: String { "ntoskrnl-\(name).map" }
}
