import Glibc
import GuestMemory
import MemoryImage

/// A file without a name, that each input is written to: what is fuzzed is what a user's file goes through.
private let descriptor: Int32 = {
    let path = "/tmp/vigil-fuzz-\(getpid())"
    let descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { fatalError("no file in /tmp to fuzz with") }
    unlink(path)
    return descriptor
}()

/// libFuzzer's entry: opens an input as a memory image and asks for all that an image can say.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOneInput(_ start: UnsafePointer<UInt8>?, _ count: Int) -> Int32 {
    guard ftruncate(descriptor, 0) == 0, pwrite(descriptor, start, count, 0) == count else { return 0 }
    guard let image = try? MemoryImage(path: "/proc/self/fd/\(descriptor)") else { return 0 }
    guard image.memory.size <= UInt64(count) else { fatalError("more memory than bytes in the file") }
    for region in image.memory.regions {
        let last = region.base + (region.length &- 1)
        // Each region can be read to its end, and nothing behind the file is said to be memory.
        guard (try? image.memory.load(UInt8.self, at: last)) != nil else { fatalError("a region ends behind the file") }
    }
    _ = try? image.processorTables()
    return 0
}
