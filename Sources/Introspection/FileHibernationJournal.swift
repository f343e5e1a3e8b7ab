import FoundationEssentials
import Glibc

/// Records of hibernations as files of a folder, one for each boot of a guest.
///
/// The folder is made when the first record is written, for its owner alone. A record appears there whole or
/// not at all. Those of guests that never came back are removed after 30 days, when another one is written.
public struct FileHibernationJournal: HibernationJournal {
    static let keeping: TimeInterval = 30 * 24 * 3600
    /// More than any record has.
    static let maximumSize = 64 << 10
    private static let prefix = "hibernation-"

    private let folder: String
    private let now: () -> Date

    /// - Parameters:
    ///   - folder: its path. It need not exist.
    ///   - now: the wall clock.
    public init(folder: String, now: @escaping () -> Date = Date.init) {
        self.folder = folder
        self.now = now
    }

    /// The path of a boot's record.
    func path(of boot: BootIdentity) -> String {
        let parts = [
            boot.kernel.base.rawValue, UInt64(boot.kernel.build), boot.systemProcess.rawValue, boot.systemPageTables,
        ]
        return folder + "/" + Self.prefix + parts.map { String($0, radix: 16) }.joined(separator: "-") + ".json"
    }

    public func write(_ record: HibernationRecord) throws(HibernationJournalError) {
        let path = path(of: record.boot)
        do {
            try FileManager.default.createDirectory(
                atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
            prune()
            try replace(path, with: [UInt8](encoder.encode(HibernationRecordFile(record))))
        } catch {
            throw HibernationJournalError("the hibernation could not be recorded in \(folder): \(Self.words(error))")
        }
    }

    public func record(of boot: BootIdentity) throws(HibernationJournalError) -> HibernationRecord? {
        let path = path(of: boot)
        do {
            guard let bytes = try read(path) else { return nil }
            let record = try JSONDecoder().decode(HibernationRecordFile.self, from: Data(bytes)).record
            // Names are made of the identity, not the other way round.
            return record.boot == boot ? record : nil
        } catch {
            throw HibernationJournalError("the record of a hibernation cannot be used, \(path): \(Self.words(error))")
        }
    }

    public func remove(_ boot: BootIdentity) throws(HibernationJournalError) {
        let path = path(of: boot)
        guard unlink(path) != 0, errno != ENOENT else { return }
        throw HibernationJournalError("the record \(path) could not be removed: \(String(cString: strerror(errno)))")
    }

    // MARK: Files

    private struct SystemError: Error {
        let number = errno
    }

    private static func words(_ error: any Error) -> String {
        switch error {
        case let error as SystemError: String(cString: strerror(error.number))
        case is DecodingError: "it is damaged"
        case let error as HibernationJournalError: error.description
        case let error as CocoaError where error.underlying is POSIXError:
            String(cString: strerror((error.underlying as? POSIXError)?.code.rawValue ?? EIO))
        default: "\(error)"
        }
    }

    /// Writes beside the place and then renames: whoever reads finds the old bytes or the new ones.
    private func replace(_ path: String, with bytes: [UInt8]) throws {
        let draft = "\(folder)/\(Self.prefix)\(UUID().uuidString).new"
        let descriptor = open(draft, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw SystemError() }
        do {
            defer { close(descriptor) }
            var done = 0
            while done < bytes.count {
                let count = bytes[done...].withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
                guard count > 0 || errno == EINTR else { throw SystemError() }
                done += max(0, count)
            }
            guard fsync(descriptor) == 0 else { throw SystemError() }
            guard rename(draft, path) == 0 else { throw SystemError() }
        } catch {
            unlink(draft)
            throw error
        }
    }

    private func read(_ path: String) throws -> [UInt8]? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        if descriptor < 0 && (errno == ENOENT || errno == ENOTDIR) { return nil }
        guard descriptor >= 0 else { throw SystemError() }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: Self.maximumSize)
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeMutableBytes { Glibc.read(descriptor, $0.baseAddress, $0.count) }
            if count == 0 { return Array(bytes[..<done]) }
            guard count > 0 || errno == EINTR else { throw SystemError() }
            done += max(0, count)
        }
        throw HibernationJournalError("it is too long")
    }

    /// Removes what is too old, drafts of processes that died included.
    private func prune() {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
        for name in names where name.hasPrefix(Self.prefix) {
            let path = "\(folder)/\(name)"
            var status = stat()
            guard lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { continue }
            if now().timeIntervalSince1970 - Double(status.st_mtim.tv_sec) > Self.keeping { unlink(path) }
        }
    }
}
