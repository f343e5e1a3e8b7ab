import GuestMemory

/// Why the kernel, or something in it, is not known.
///
/// `canBeRetried` tells what may come with time (a guest still booting, a page not resident) from what will
/// not (another kernel, code of an unknown shape).
public enum DiscoveryError: Error, Hashable, Sendable {
    /// Paging is off on this vCPU: the guest is in its firmware or its first boot code.
    case pagingOff
    /// The vCPU is not in long mode, and its interrupt table is none of 32-bit mode: firmware or boot code between the
    /// two.
    case notLongMode
    /// The system is not far enough: what is missing, in words.
    case stillBooting(String)
    /// The kernel's image cannot be seen from the address space that the vCPU was in: under kernel page-table
    /// isolation a user-mode address space maps almost none of it. Without its header the image is not told either.
    case notVisible(GuestVirtualAddress)
    /// What `reading` says lies in a page that is not resident now.
    case notYet(reading: String, MemoryError)
    /// There is no Windows kernel; why not, in words.
    case noKernel(String)
    /// What `reading` says cannot be read, for a reason that time does not mend.
    case unreadable(reading: String, MemoryError)
    /// A structure in the guest contradicts itself or its bounds.
    case malformed(String, at: GuestVirtualAddress)
    /// The kernel (or module) exports no such name.
    case missingExport(String)
    /// A function has another shape than all known kernels give it.
    case unexpectedCode(function: String, at: GuestVirtualAddress, String)
    /// Several candidates, nothing that tells them apart.
    case ambiguous(String, candidates: [GuestVirtualAddress])
    /// Two ways of finding the same thing give different answers.
    case disagreement(String, first: GuestVirtualAddress, second: GuestVirtualAddress)
    /// Every way of finding it was tried in vain.
    case notFound(String)

    /// A failed read as the reason.
    init(_ error: MemoryError, reading what: String) {
        self = error.isNotPresent ? .notYet(reading: what, error) : .unreadable(reading: what, error)
    }

    /// The answer may be another one a little later.
    public var canBeRetried: Bool {
        switch self {
        case .pagingOff, .notLongMode, .stillBooting, .notVisible, .notYet: true
        case .noKernel, .unreadable, .malformed, .missingExport, .unexpectedCode, .ambiguous, .disagreement,
            .notFound:
            false
        }
    }
}

extension DiscoveryError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .pagingOff:
            "the guest has not turned paging on yet: it is in its firmware or its boot loader"
        case .notLongMode:
            "the guest is neither in 64-bit mode nor has it the tables of 32-bit mode: it is booting"
        case .stillBooting(let what):
            "the guest is still booting: \(what)"
        case .notVisible(let address):
            "the kernel around \(address) cannot be seen, or not its header, from the address space the vCPU is in "
                + "(user mode under page-table isolation, or the header's page is gone): try again when it is in the "
                + "kernel"
        case .notYet(let what, let error):
            "\(what) is not known yet: \(error)"
        case .noKernel(let why):
            "no Windows kernel was found: \(why)"
        case .unreadable(let what, let error):
            "\(what) cannot be read: \(error)"
        case .malformed(let what, let address):
            "what is in the guest at \(address) makes no sense: \(what)"
        case .missingExport(let name):
            "the image exports no \(name)"
        case .unexpectedCode(let function, let address, let why):
            "\(function) at \(address) does not have the shape it has in known kernels: \(why)"
        case .ambiguous(let what, let candidates):
            "\(what) is ambiguous: " + candidates.map(\.description).joined(separator: ", ")
        case .disagreement(let what, let first, let second):
            "two ways of finding \(what) disagree: \(first) and \(second)"
        case .notFound(let what):
            "\(what) was not found"
        }
    }
}

/// Runs reads of guest memory; a failed one becomes the discovery's error, with what was being read.
func reading<Result>(
    _ what: @autoclosure () -> String, _ body: () throws(MemoryError) -> Result
) throws(DiscoveryError) -> Result {
    do throws(MemoryError) {
        return try body()
    } catch {
        throw DiscoveryError(error, reading: what())
    }
}
