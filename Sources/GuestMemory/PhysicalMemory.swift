import CLinux

#if canImport(Glibc)
    import Glibc
#else
    import Musl
#endif

/// A range of guest-physical addresses that is RAM, and where it can be found on the host.
public struct RAMRegion: Hashable, Sendable {
    public var base: GuestPhysicalAddress
    /// In bytes; a multiple of the page size, but in a file.
    public var length: UInt64
    /// Where the range starts: an address of this process when the memory is mapped here, of the
    /// hypervisor's process when it is read from there, an offset into the file when it is read from one,
    /// unused otherwise.
    public var hostAddress: UInt64

    public init(base: GuestPhysicalAddress, length: UInt64, hostAddress: UInt64) {
        self.base = base
        self.length = length
        self.hostAddress = hostAddress
    }
}

/// Reads guest RAM where it can neither be mapped nor read from the hypervisor's process.
public protocol PhysicalMemoryReader: AnyObject {
    /// Fills `buffer` from guest RAM at `address`. The range lies within one RAM region.
    func read(at address: GuestPhysicalAddress, into buffer: UnsafeMutableRawBufferPointer) throws(MemoryError)
}

/// The guest's RAM, to read.
///
/// This is the bottom of every read, so it is a concrete type: a mapped read is a search among a few
/// regions and a load. Nothing here can change the guest.
public final class PhysicalMemory {
    /// How the host reaches the guest's RAM.
    @usableFromInline enum Access {
        /// `RAMRegion.hostAddress` is an address in this process.
        case mapped
        /// `RAMRegion.hostAddress` is an address in process `pid`; each read is a `process_vm_readv`.
        case process(pid: Int32)
        /// `RAMRegion.hostAddress` is an offset into the file; each read is a `pread`.
        case file(RAMFile)
        case reader(any PhysicalMemoryReader)
    }

    /// Sorted by base, not overlapping.
    public let regions: [RAMRegion]
    @usableFromInline let access: Access
    /// `access` is `.mapped`, for the read path.
    @usableFromInline let isMapped: Bool
    /// A copy of `regions` behind a plain pointer, for the read path: the largest first, since most reads go
    /// there.
    @usableFromInline let table: UnsafeMutablePointer<RAMRegion>
    @usableFromInline let count: Int
    /// The largest region, where it is mapped here; empty otherwise. Most loads go there.
    @usableFromInline let mainBase: UInt64
    @usableFromInline let mainLength: UInt64
    @usableFromInline let mainStart: UnsafeRawPointer

    private init(regions: [RAMRegion], access: Access) {
        let sorted = regions.sorted { $0.base < $1.base }
        self.regions = sorted
        self.access = access
        if case .mapped = access { isMapped = true } else { isMapped = false }
        let bySize = sorted.sorted { $0.length > $1.length }
        count = bySize.count
        table = .allocate(capacity: max(bySize.count, 1))
        table.initialize(from: bySize, count: bySize.count)
        let main = isMapped ? bySize.first : nil
        let start = main.flatMap { UnsafeRawPointer(bitPattern: UInt($0.hostAddress)) }
        mainStart = start ?? UnsafeRawPointer(table)
        mainBase = main?.base.rawValue ?? 0
        mainLength = start == nil ? 0 : main?.length ?? 0
    }

    deinit { table.deallocate() }

    /// RAM that is mapped in this process. The mapping must outlive the object.
    public convenience init(mapped regions: [RAMRegion]) { self.init(regions: regions, access: .mapped) }

    /// RAM read from the memory of another process.
    public convenience init(process pid: Int32, regions: [RAMRegion]) {
        self.init(regions: regions, access: .process(pid: pid))
    }

    /// RAM read from a file.
    public convenience init(file: RAMFile, regions: [RAMRegion]) {
        self.init(regions: regions, access: .file(file))
    }

    /// RAM read by whatever `reader` does.
    public convenience init(reader: any PhysicalMemoryReader, regions: [RAMRegion]) {
        self.init(regions: regions, access: .reader(reader))
    }

    /// The bytes of RAM in all regions.
    public var size: UInt64 { regions.reduce(0) { $0 &+ $1.length } }

    /// The host address of `length` bytes of RAM at `address`, where all of them lie in one region.
    @usableFromInline func hostAddress(of address: GuestPhysicalAddress, length: Int) -> UInt64? {
        for index in 0..<count {
            let region = table[index]
            let offset = address.rawValue &- region.base.rawValue
            if offset < region.length {
                return region.length &- offset >= UInt64(length) ? region.hostAddress &+ offset : nil
            }
        }
        return nil
    }

    /// Where `length` bytes of RAM at `address` are mapped in this process, if they are.
    @inline(__always) @inlinable func mapping(
        of address: GuestPhysicalAddress, length: Int
    ) -> UnsafeRawPointer? {
        guard isMapped else { return nil }
        for index in 0..<count {
            let offset = address.rawValue &- table[index].base.rawValue
            let size = table[index].length
            if offset < size, size &- offset >= UInt64(truncatingIfNeeded: length) {
                return UnsafeRawPointer(bitPattern: UInt(truncatingIfNeeded: table[index].hostAddress &+ offset))
            }
        }
        return nil
    }

    /// Fills `buffer` from RAM at `address`, across regions that adjoin.
    /// - Throws: `notRAM` with the first address that is none, before or after a part was read.
    @inlinable public func read(
        at address: GuestPhysicalAddress, into buffer: UnsafeMutableRawBufferPointer
    ) throws(MemoryError) {
        guard let destination = buffer.baseAddress, buffer.count > 0 else { return }
        if let source = mapping(of: address, length: buffer.count) {
            destination.copyMemory(from: source, byteCount: buffer.count)
            return
        }
        if let host = hostAddress(of: address, length: buffer.count) {
            return try readElsewhere(at: address, host: host, into: buffer)
        }
        try readAcrossRegions(at: address, into: buffer)
    }

    /// Whether RAM at `address` holds these bytes now. Where RAM is mapped here nothing is copied.
    /// - Throws: `notRAM`, `unreachable`.
    public func holds(_ bytes: UnsafeRawBufferPointer, at address: GuestPhysicalAddress) throws(MemoryError) -> Bool {
        guard let expected = bytes.baseAddress, bytes.count > 0 else { return true }
        if let found = mapping(of: address, length: bytes.count) {
            return memcmp(found, expected, bytes.count) == 0
        }
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 8)
        defer { buffer.deallocate() }
        try read(at: address, into: buffer)
        guard let found = buffer.baseAddress else { return false }
        return memcmp(found, expected, bytes.count) == 0
    }

    /// Loads an integer from RAM at `address`. An aligned one is read in one piece.
    @inline(__always) @inlinable public func load<Value: FixedWidthInteger & BitwiseCopyable>(
        _ type: Value.Type, at address: GuestPhysicalAddress
    ) throws(MemoryError) -> Value {
        if let source = mapping(of: address, length: MemoryLayout<Value>.size) {
            return Value(littleEndian: source.loadUnaligned(as: Value.self))
        }
        return try loadElsewhere(type, at: address)
    }

    @inline(never) @inlinable func loadElsewhere<Value: FixedWidthInteger & BitwiseCopyable>(
        _ type: Value.Type, at address: GuestPhysicalAddress
    ) throws(MemoryError) -> Value {
        var value: Value = 0
        let size = MemoryLayout<Value>.size
        try withUnsafeMutablePointer(to: &value) { (pointer) throws(MemoryError) in
            try read(at: address, into: UnsafeMutableRawBufferPointer(start: pointer, count: size))
        }
        return Value(littleEndian: value)
    }

    @usableFromInline func readElsewhere(
        at address: GuestPhysicalAddress, host: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(MemoryError) {
        switch access {
        case .mapped:
            throw .notRAM(address)
        case .process(let pid):
            let error = clinux_process_read(pid, host, buffer.baseAddress, buffer.count)
            if error != 0 { throw .unreachable(address, errno: error) }
        case .file(let file):
            let error = file.read(at: host, into: buffer)
            if error != 0 { throw .unreachable(address, errno: error) }
        case .reader(let reader):
            try reader.read(at: address, into: buffer)
        }
    }

    @usableFromInline func readAcrossRegions(
        at address: GuestPhysicalAddress, into buffer: UnsafeMutableRawBufferPointer
    ) throws(MemoryError) {
        var done = 0
        while done < buffer.count {
            let next = address + UInt64(done)
            guard let region = regions.first(where: { next.rawValue &- $0.base.rawValue < $0.length }) else {
                throw .notRAM(next)
            }
            let offset = next.rawValue &- region.base.rawValue
            let part = Int(min(UInt64(buffer.count - done), region.length - offset))
            try read(at: next, into: UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + part]))
            done += part
        }
    }
}
