/// Memory read through some translation of linear addresses.
///
/// A conforming type says how one address is translated; everything else is built on that here, for
/// concrete types, so that no read goes through an existential.
public protocol TranslatedMemory {
    /// The guest's RAM.
    var physical: PhysicalMemory { get }
    /// How linear addresses are formed.
    var pagingMode: PagingMode { get }
    /// Where `address` is now.
    func translate(_ address: GuestVirtualAddress) throws(MemoryError) -> Translation
}

extension TranslatedMemory {
    /// Loads an integer at `address`, also across a page boundary; one within a page is read in one piece.
    @inlinable public func load<Value: FixedWidthInteger & BitwiseCopyable>(
        _ type: Value.Type, at address: GuestVirtualAddress
    ) throws(MemoryError) -> Value {
        let size = UInt64(MemoryLayout<Value>.size)
        let translation = try translate(address)
        if translation.bytesToPageEnd >= size { return try physical.load(type, at: translation.physical) }
        var value: Value = 0
        try withUnsafeMutablePointer(to: &value) { (pointer) throws(MemoryError) in
            try read(at: address, into: UnsafeMutableRawBufferPointer(start: pointer, count: MemoryLayout<Value>.size))
        }
        return Value(littleEndian: value)
    }

    /// Loads a pointer, as wide as the system's are.
    @inlinable public func pointer(at address: GuestVirtualAddress) throws(MemoryError) -> GuestVirtualAddress {
        GuestVirtualAddress(try word(at: address))
    }

    /// Loads an integer as wide as a pointer (ULONG_PTR).
    @inlinable public func word(at address: GuestVirtualAddress) throws(MemoryError) -> UInt64 {
        pagingMode.pointerSize == 8 ? try load(UInt64.self, at: address) : UInt64(try load(UInt32.self, at: address))
    }

    /// Fills `buffer` from `address` on, translating each page once.
    /// - Throws: the first page's error, before or after a part was read.
    @inlinable public func read(
        at address: GuestVirtualAddress, into buffer: UnsafeMutableRawBufferPointer
    ) throws(MemoryError) {
        try checkRange(at: address, count: UInt64(buffer.count))
        var done = 0
        while done < buffer.count {
            let translation = try translate(address + UInt64(done))
            let part = Int(min(UInt64(buffer.count &- done), translation.bytesToPageEnd))
            try physical.read(
                at: translation.physical, into: UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done &+ part]))
            done &+= part
        }
    }

    /// The `count` bytes from `address` on.
    /// - Parameter maximum: the most that what is read can be long; a larger `count` throws `tooLong`, so a
    ///   length found in the guest cannot make the host allocate at will.
    public func bytes(
        at address: GuestVirtualAddress, count: UInt64, maximum: UInt64 = 1 << 20
    ) throws(MemoryError) -> [UInt8] {
        guard count <= min(maximum, UInt64(Int32.max)) else {
            throw .tooLong(address, count: count, maximum: maximum)
        }
        var bytes = [UInt8](repeating: 0, count: Int(count))
        try bytes.withUnsafeMutableBufferPointer { (buffer) throws(MemoryError) in
            try read(at: address, into: UnsafeMutableRawBufferPointer(buffer))
        }
        return bytes
    }

    /// Throws `notCanonical` unless `count` bytes from `address` on stay within one half of the address space.
    @inlinable func checkRange(at address: GuestVirtualAddress, count: UInt64) throws(MemoryError) {
        guard pagingMode.isCanonical(address) else { throw .notCanonical(address) }
        let space = pagingMode.end(of: address) &- address.rawValue
        guard count <= space else { throw .notCanonical(address + space) }
    }
}
