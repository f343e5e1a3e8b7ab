/// One build of the kernel: how it is optimised, and how its
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

    let optimization: Optimization
    let reentry: Reentry

    static var all: [Variant] {
        Optimization.allCases.flatMap { optimization in
            Reentry.allCases.map { Variant(optimization: optimization, reentry: $0) }
        }
    }

    var imageName: String { "ntoskrnl-\(optimization.rawValue)-\(reentry.rawValue).exe" }
}
