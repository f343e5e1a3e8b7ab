import GuestMemory
import X86

/// Decodes instructions from guest memory, reading each page at most once.
///
/// A reader lives as long as one analysis: what it has read is a snapshot of code at that time.
final class CodeReader {
    /// 64 MiB of code: more than any kernel has.
    static let maximumPages = 1 << 14

    /// What the code is for.
    let architecture: KernelArchitecture
    private let memory: KernelMemory
    private let decoder: InstructionDecoder
    private var pages: [UInt64: [UInt8]] = [:]

    /// - Parameter architecture: what the code is for; nil where that is what the system is for.
    init(_ memory: KernelMemory, architecture: KernelArchitecture? = nil) {
        self.memory = memory
        self.architecture = architecture ?? KernelArchitecture(memory.pagingMode)
        decoder = InstructionDecoder(mode: self.architecture.decodingMode)
    }

    /// The instruction at `address`; nil where the bytes are none.
    /// - Throws: where a page that the instruction needs cannot be read.
    func instruction(at address: GuestVirtualAddress) throws(MemoryError) -> Instruction? {
        let offset = Int(address.rawValue & 0xfff)
        let page = try page(at: address.page)
        if let found = decoder.decode(page[offset...], at: address.rawValue) { return found }
        let inPage = 4096 - offset
        guard inPage < InstructionDecoder.maximumLength else { return nil }
        let next = try self.page(at: address.page + 4096)
        let bytes = Array(page[offset...]) + next[..<(InstructionDecoder.maximumLength - inPage)]
        return decoder.decode(bytes, at: address.rawValue)
    }

    private func page(at address: GuestVirtualAddress) throws(MemoryError) -> [UInt8] {
        if let page = pages[address.rawValue] { return page }
        let page = try memory.bytes(at: address, count: 4096)
        if pages.count >= Self.maximumPages { pages.removeAll() }
        pages[address.rawValue] = page
        return page
    }
}
