import FoundationEssentials
import GuestMemory
import HypervisorInterface
import WindowsGuest

/// A record as it stands in its file. Addresses are `0x` and hexadecimal digits, times UTC, durations seconds.
struct HibernationRecordFile: Codable {
    private static let currentVersion = 1
    private static let timeFormat = Date.ISO8601FormatStyle(includingFractionalSeconds: true)

    /// Of this format.
    var version: Int
    var hibernatedAt: String
    var session: String
    var request: Int
    var kernelBase: String
    var build: UInt32
    var architecture: String
    var timeDateStamp: UInt32
    var imageSize: UInt32
    var systemProcess: String
    var systemPageTables: String
    var awakeSeconds: Double?
    var machine: String?
    var uuid: String?
    var pid: Int32?
    /// After the host's boot.
    var processStartSeconds: Double?
    var hypervisor: String

    init(_ record: HibernationRecord) {
        let boot = record.boot
        version = Self.currentVersion
        hibernatedAt = record.hibernatedAt.formatted(Self.timeFormat)
        session = record.session
        request = record.request
        kernelBase = Self.hex(boot.kernel.base.rawValue)
        build = boot.kernel.build
        architecture = boot.kernel.architecture.rawValue
        timeDateStamp = boot.kernel.timeDateStamp
        imageSize = boot.kernel.imageSize
        systemProcess = Self.hex(boot.systemProcess.rawValue)
        systemPageTables = Self.hex(boot.systemPageTables)
        awakeSeconds = record.awakeTime.map(Self.seconds)
        machine = record.machine.name
        uuid = record.machine.uuid
        pid = record.machine.processID
        processStartSeconds = record.machine.processStart.map(Self.seconds)
        hypervisor = record.machine.hypervisor
    }

    /// - Throws: `HibernationJournalError` where it says something that no record can.
    var record: HibernationRecord {
        get throws {
            guard version == Self.currentVersion else {
                throw HibernationJournalError("it is of another version of Vigil")
            }
            guard let base = Self.number(kernelBase), let process = Self.number(systemProcess),
                let tables = Self.number(systemPageTables),
                let architecture = KernelArchitecture(rawValue: architecture),
                let time = try? Date(hibernatedAt, strategy: Self.timeFormat)
            else { throw HibernationJournalError("it is damaged") }
            let kernel = KernelIdentity(
                build: build, architecture: architecture, base: GuestVirtualAddress(base),
                timeDateStamp: timeDateStamp, imageSize: imageSize)
            return HibernationRecord(
                boot: BootIdentity(
                    kernel: kernel, systemProcess: GuestVirtualAddress(process), systemPageTables: tables),
                machine: MachineIdentity(
                    name: machine, uuid: uuid, processID: pid, processStart: try Self.duration(processStartSeconds),
                    hypervisor: hypervisor),
                session: session, request: request, hibernatedAt: time, awakeTime: try Self.duration(awakeSeconds))
        }
    }

    private static func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

    private static func number(_ text: String) -> UInt64? {
        text.hasPrefix("0x") ? UInt64(text.dropFirst(2), radix: 16) : nil
    }

    /// To the millisecond.
    private static func seconds(_ duration: Duration) -> Double {
        let parts = duration.components
        return Double(parts.seconds) + Double(parts.attoseconds / 1_000_000_000_000_000) / 1000
    }

    private static func duration(_ seconds: Double?) throws -> Duration? {
        guard let seconds else { return nil }
        guard seconds >= 0, seconds < 1e12 else { throw HibernationJournalError("it is damaged") }
        return .milliseconds(Int64((seconds * 1000).rounded()))
    }
}
