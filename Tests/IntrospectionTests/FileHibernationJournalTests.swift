import Foundation
import GuestMemory
import HypervisorInterface
import Testing
import WindowsGuest

@testable import Introspection

@Suite("Records of hibernations as files") final class FileHibernationJournalTests {
    let folder = NSTemporaryDirectory() + "/vigil-journal-" + UUID().uuidString
    lazy var journal = FileHibernationJournal(folder: folder)

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    static func record(base: UInt64 = 0xffff_f800_1230_0000, request: Int = 7) -> HibernationRecord {
        HibernationRecord(
            boot: BootIdentity(
                kernel: KernelIdentity(
                    build: 19045, architecture: .x64, base: GuestVirtualAddress(base), timeDateStamp: 0xfedc_ba98,
                    imageSize: 0x104_6000),
                systemProcess: GuestVirtualAddress(0xffff_b800_0000_f110), systemPageTables: 0x1a_d002),
            machine: MachineIdentity(
                name: "a \"name\"/..", uuid: "6e0c", processID: 4711, processStart: .milliseconds(1_234_560),
                hypervisor: "QEMU 7.2.22"),
            session: "3f2a", request: request, hibernatedAt: Date(timeIntervalSince1970: 1_763_900_000.125),
            awakeTime: .milliseconds(3_600_001))
    }

    var names: [String] { ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).sorted() }

    @Test("A record is read as it was written, and is gone when it was removed")
    func roundTrip() throws {
        let record = Self.record()
        #expect(try journal.record(of: record.boot) == nil)
        try journal.write(record)
        #expect(try journal.record(of: record.boot) == record)
        #expect(try journal.record(of: Self.record(base: 0xffff_f800_1250_0000).boot) == nil)
        try journal.remove(record.boot)
        #expect(try journal.record(of: record.boot) == nil)
        try journal.remove(record.boot)
    }

    @Test("What is not known stays unknown")
    func unknowns() throws {
        var record = Self.record()
        record.machine = MachineIdentity(name: nil, uuid: nil, processID: nil, hypervisor: "QEMU")
        record.awakeTime = nil
        try journal.write(record)
        #expect(try journal.record(of: record.boot) == record)
    }

    @Test("A second hibernation of the same boot takes the first one's place; nothing else is left in the folder")
    func replaced() throws {
        try journal.write(Self.record(request: 1))
        try journal.write(Self.record(request: 2))
        #expect(names.count == 1)
        #expect(try journal.record(of: Self.record().boot)?.request == 2)
    }

    @Test("Folder and record are for their owner alone")
    func permissions() throws {
        try journal.write(Self.record())
        for (path, mode) in [(folder, 0o700), (folder + "/" + names[0], 0o600)] {
            let attributes = try FileManager.default.attributesOfItem(atPath: path)
            #expect((attributes[.posixPermissions] as? NSNumber)?.intValue == mode, "\(path)")
        }
    }

    @Test("Where the place is taken, nothing is left behind and the error names the folder")
    func failsWhole() throws {
        let record = Self.record()
        // A folder that is not empty cannot be replaced by a file.
        try FileManager.default.createDirectory(
            atPath: journal.path(of: record.boot) + "/x", withIntermediateDirectories: true)
        let error = #expect(throws: HibernationJournalError.self) { try self.journal.write(record) }
        #expect(error?.description.contains(folder) == true)
        #expect(names.count == 1)
    }

    @Test("A folder that cannot be made is an error in words")
    func noFolder() {
        let journal = FileHibernationJournal(folder: "/proc/self/status/vigil")
        let error = #expect(throws: HibernationJournalError.self) { try journal.write(Self.record()) }
        #expect(
            error?.description.hasPrefix("the hibernation could not be recorded in /proc/self/status/vigil") == true)
    }

    @Test(
        "A damaged record is an error in words, and can be overwritten",
        arguments: ["", "{", "[]", "{\"version\":1}", "\u{0}", String(repeating: " ", count: 100_000)])
    func damaged(text: String) throws {
        let record = Self.record()
        try journal.write(record)
        let path = journal.path(of: record.boot)
        try text.write(toFile: path, atomically: false, encoding: .utf8)
        let error = #expect(throws: HibernationJournalError.self) { try self.journal.record(of: record.boot) }
        #expect(error?.description.contains(path) == true)
        try journal.write(record)
        #expect(try journal.record(of: record.boot) == record)
    }

    @Test("A record cut off anywhere is damaged, and a value that no record has is too")
    func cutOff() throws {
        let record = Self.record()
        try journal.write(record)
        let path = journal.path(of: record.boot)
        let whole = try String(contentsOfFile: path, encoding: .utf8)
        for count in stride(from: 0, to: whole.count - 1, by: 7) {
            try whole.prefix(count).write(toFile: path, atomically: false, encoding: .utf8)
            #expect(throws: HibernationJournalError.self) { try self.journal.record(of: record.boot) }
        }
        for (old, new) in [
            ("0xfffff80012300000", "fffff"), ("x64", "arm64"), ("\"version\" : 1", "\"version\" : 2"),
            ("2025-", "yesterday-"), ("1234.56", "1e300"),
        ] {
            #expect(whole.contains(old))
            try whole.replacingOccurrences(of: old, with: new).write(toFile: path, atomically: false, encoding: .utf8)
            #expect(throws: HibernationJournalError.self, "\(new)") { try self.journal.record(of: record.boot) }
        }
        // A record that says another boot than its name does.
        try whole.replacingOccurrences(of: "19045", with: "19044").write(
            toFile: path, atomically: false, encoding: .utf8)
        #expect(try journal.record(of: record.boot) == nil)
    }

    @Test("Records older than 30 days go when another is written; younger ones, and other files, stay")
    func pruned() throws {
        try journal.write(Self.record())
        try Data().write(to: URL(fileURLWithPath: folder + "/other"))
        let other = Self.record(base: 0xffff_f800_1250_0000)
        try FileHibernationJournal(folder: folder) { Date().addingTimeInterval(29 * 86400) }.write(other)
        #expect(names.count == 3)
        try FileHibernationJournal(folder: folder) { Date().addingTimeInterval(31 * 86400) }.write(other)
        #expect(names.count == 2 && names.contains("other"))
    }
}
