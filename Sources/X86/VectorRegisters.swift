/// The vector registers that a called function need not preserve (Microsoft, "x64 calling convention"), and the
/// control register of their operations.
public struct VectorRegisters: Equatable, Sendable {
    public static let count = 6

    /// XMM0 to XMM5, the lower 64 bits first.
    public var xmm0, xmm1, xmm2, xmm3, xmm4, xmm5: SIMD2<UInt64>
    public var mxcsr: UInt64

    public init() {
        xmm0 = .zero
        xmm1 = .zero
        xmm2 = .zero
        xmm3 = .zero
        xmm4 = .zero
        xmm5 = .zero
        // What a processor starts with. Intel SDM volume 1, 10.2.3.
        mxcsr = 0x1f80
    }

    /// The six, in order.
    public static let all: [WritableKeyPath<Self, SIMD2<UInt64>> & Sendable] = [
        \.xmm0, \.xmm1, \.xmm2, \.xmm3, \.xmm4, \.xmm5,
    ]
}
