import HypervisorInterface
import Testing

@testable import PowerTransitions

@Suite("A transition's record") struct TransitionRecordTests {
    static func record(_ transition: Transition, _ events: HostEvent...) -> TransitionRecord {
        var record = TransitionRecord(id: RequestID(1), transition: transition, isWatched: true, deadline: .now)
        for event in events { record.note(event) }
        return record
    }

    static let events: [HostEvent] = [
        .suspended, .wokeUp, .suspendedToDisk, .reset(byGuest: true), .reset(byGuest: false),
        .poweredOff(byGuest: true),
        .poweredOff(byGuest: false), .guestPanicked,
    ]

    /// Which of `events` each transition foretells.
    static let foretold: [(Transition, [Bool])] = [
        (.sleep, [true, true, true, false, false, false, false, false]),
        (.hibernate, [true, true, true, false, false, true, false, false]),
        (.reboot, [false, false, false, true, false, false, false, false]),
        (.shutdown, [false, false, false, false, false, true, false, false]),
    ]

    @Test("Each transition foretells its own events and no others", arguments: 0..<4)
    func foretells(index: Int) {
        let (transition, expected) = Self.foretold[index]
        #expect(Self.events.map { Self.record(transition).foretold($0) } == expected, "\(transition)")
    }

    @Test("Arguments of unknown meaning foretell what a guest can do by itself, and not what its host does")
    func unknown() {
        let record = Self.record(.unknown)
        for event in Self.events.prefix(4) { #expect(record.foretold(event)) }
        #expect(record.foretold(.poweredOff(byGuest: true)))
        #expect(!record.foretold(.poweredOff(byGuest: false)))
        #expect(!record.foretold(.reset(byGuest: false)))
    }

    @Test("An error status is a refusal, whether the machine slept or not", arguments: Transition.allCases)
    func refused(transition: Transition) {
        for status in [0xc000_0001, 0x8000_0005, UInt32.max] {
            #expect(Self.record(transition).result(status: status) == .refused)
            #expect(Self.record(transition, .suspended, .wokeUp).result(status: status) == .refused)
        }
    }

    @Test("A success status is a resumption where the machine slept, else a return", arguments: Transition.allCases)
    func success(transition: Transition) {
        for status in [0, 0x103, 0x4000_0000, 0x7fff_ffff] as [UInt32] {
            #expect(Self.record(transition).result(status: status) == .returned)
            #expect(Self.record(transition, .suspended, .wokeUp).result(status: status) == .resumed)
        }
    }

    @Test(
        "A reset ends in a reset, and events that leave the machine alive end nothing", arguments: Transition.allCases)
    func endings(transition: Transition) {
        let record = Self.record(transition)
        #expect(record.result(of: .reset(byGuest: true)) == .reset)
        #expect(record.result(of: .reset(byGuest: false)) == .reset)
        for event in [HostEvent.suspended, .wokeUp, .suspendedToDisk, .guestPanicked, .powerButtonPressed] {
            #expect(record.result(of: event) == nil)
        }
    }

    @Test("The guest's power-off ends a hibernation, with or without a host event for the disk; else it is one")
    func powerOff() {
        let event = HostEvent.poweredOff(byGuest: true)
        #expect(Self.record(.hibernate).result(of: event) == .hibernated)
        #expect(Self.record(.hibernate, .suspendedToDisk).result(of: event) == .hibernated)
        #expect(Self.record(.sleep, .suspendedToDisk).result(of: event) == .hibernated)
        #expect(Self.record(.shutdown, .suspendedToDisk).result(of: event) == .hibernated)
        #expect(Self.record(.shutdown).result(of: event) == .poweredOff)
        #expect(Self.record(.sleep).result(of: event) == .poweredOff)
        #expect(Self.record(.unknown).result(of: event) == .poweredOff)
    }

    @Test("A host that ends the machine has not let it hibernate")
    func killedWhileHibernating() {
        let event = HostEvent.poweredOff(byGuest: false)
        #expect(Self.record(.hibernate).result(of: event) == .poweredOff)
    }
}
