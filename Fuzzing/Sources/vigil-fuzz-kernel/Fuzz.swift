import Glibc
import TestSupport

/// What the input is taken for: FUZZ_KIND is Image, Patterns or Guest.
private let kind: HostileInput.Kind = {
    let name = getenv("FUZZ_KIND").map { String(cString: $0) } ?? "Guest"
    guard let kind = HostileInput.Kind(rawValue: name) else { fatalError("FUZZ_KIND is Image, Patterns or Guest") }
    return kind
}()

nonisolated(unsafe) private let ram = SyntheticRAM(size: ShapedKernel.memorySize)

/// libFuzzer's entry: discovery in a guest that the input has a hand in.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOneInput(_ start: UnsafePointer<UInt8>?, _ count: Int) -> Int32 {
    HostileInput.run(kind, Array(UnsafeBufferPointer(start: start, count: count)), ram: ram)
    return 0
}
