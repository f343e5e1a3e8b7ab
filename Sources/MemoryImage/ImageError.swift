import Foundation

/// Why a file cannot be used as a memory image. Each description completes "… cannot be used as a memory image:".
enum ImageError: Error, Equatable, Sendable {
    /// A format that is known, but not read. What it is, and how to get one that is.
    case refusedFormat(String)
    /// It is no file of bytes: what it is instead.
    case notAFile(String)
    case empty
    /// An ELF file of another kind than a core.
    case notACore(type: UInt16)
    /// A core of a machine that is no PC: its ELF machine number, or what it is.
    case otherMachine(String)
    /// Its headers contradict themselves.
    case malformed(String)
    /// It ends before what its headers describe.
    case cutShort(String, offset: UInt64, count: UInt64, size: UInt64)
    /// More than any such file has, or than can be handled: in bytes, or pieces.
    case tooLarge(String, count: UInt64, maximum: UInt64)
    /// Two segments give different contents for the same physical address.
    case contradiction(physical: UInt64)
    /// No part of it is memory.
    case noMemory
    /// The file system failed.
    case unreadable(String, errno: Int32)
}

extension ImageError: CustomStringConvertible {
    var description: String {
        switch self {
        case .refusedFormat(let what): what
        case .notAFile(let what): "it is \(what)"
        case .empty: "it is empty"
        case .notACore(let type):
            "it is an ELF file, but no core (its type is \(type) rather than 4)"
        case .otherMachine(let what): "it is the core of another machine than an x86 PC (\(what))"
        case .malformed(let what): "it is damaged: \(what)"
        case .cutShort(let what, let offset, let count, let size):
            "it is cut short, or still being written: \(what) would be \(count) bytes at \(offset), "
                + "and it has \(size) in all"
        case .tooLarge(let what, let count, let maximum):
            "\(what): \(count), where at most \(maximum) can be handled"
        case .contradiction(let physical):
            "two of its segments hold the physical address 0x\(String(physical, radix: 16)), with contents from "
                + "different places: it may be the core of a program rather than of a machine"
        case .noMemory: "no segment of it holds memory"
        case .unreadable(let what, let errno): "\(what) could not be read: \(String(cString: strerror(errno)))"
        }
    }
}
