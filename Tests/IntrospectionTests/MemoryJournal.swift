@testable import Introspection

/// A journal that keeps records in memory, and can be made to fail.
final class MemoryJournal: HibernationJournal {
    var records: [BootIdentity: HibernationRecord] = [:]
    var failure: HibernationJournalError?

    func write(_ record: HibernationRecord) throws(HibernationJournalError) {
        if let failure { throw failure }
        records[record.boot] = record
    }

    func record(of boot: BootIdentity) throws(HibernationJournalError) -> HibernationRecord? {
        if let failure { throw failure }
        return records[boot]
    }

    func remove(_ boot: BootIdentity) throws(HibernationJournalError) {
        if let failure { throw failure }
        records[boot] = nil
    }
}
