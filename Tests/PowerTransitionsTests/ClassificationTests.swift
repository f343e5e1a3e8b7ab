import PowerTransitions
import Testing

@Suite("Classification") struct ClassificationTests {
    static let u = Transition.unknown, sl = Transition.sleep, h = Transition.hibernate
    static let r = Transition.reboot, sh = Transition.shutdown

    /// The original's table: a row for each action from 0 to 8, a column for each state from 0 to 8.
    static let table: [[Transition]] = [
        [u, u, u, u, u, u, u, u, u],
        [u, u, u, u, u, u, u, u, u],
        [u, u, sl, sl, sl, h, u, u, u],
        [u, u, u, u, u, h, u, u, u],
        [sh, sh, sh, sh, sh, h, sh, sh, sh],
        [r, r, r, r, r, r, r, r, r],
        [sh, sh, sh, sh, sh, h, sh, sh, sh],
        [u, u, u, u, u, u, u, u, u],
        [u, u, u, u, u, u, u, u, u],
    ]

    @Test("Every pair of an action and a state from 0 to 8 is classified as the original does", arguments: 0..<81)
    func cell(index: Int) {
        let (action, state) = (UInt32(index / 9), UInt32(index % 9))
        #expect(Transition(action: action, minimumState: state) == Self.table[index / 9][index % 9])
        #expect(
            PowerRequest(action: action, minimumState: state, flags: 0).transition == Self.table[index / 9][index % 9])
    }

    @Test(
        "States beyond those that Windows knows leave a shutdown a shutdown and a reset a reset, all else unknown",
        arguments: [9, 10, 0x105, 0x7fff_ffff, 0x8000_0005, UInt32.max] as [UInt32])
    func largeStates(state: UInt32) {
        let row = (0...8).map { Transition(action: $0, minimumState: state) }
        #expect(row == [Self.u, Self.u, Self.u, Self.u, Self.sh, Self.r, Self.sh, Self.u, Self.u])
    }

    @Test(
        "Actions beyond those that Windows knows are unknown, whatever the state",
        arguments: [9, 0x104, 0x7fff_ffff, 0x8000_0004, UInt32.max] as [UInt32])
    func largeActions(action: UInt32) {
        for state in [0, 1, 2, 4, 5, 6, 7, 8, UInt32.max] {
            #expect(Transition(action: action, minimumState: state) == .unknown)
        }
    }

    @Test("Only a state outside 1 to 6 or an action outside 1 to 8 is rejected, as every kernel does")
    func rejection() {
        for action in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0x8000_0001, UInt32.max] {
            for state in [0, 1, 2, 3, 4, 5, 6, 7, 8, 0x8000_0001, UInt32.max] {
                let request = PowerRequest(action: action, minimumState: state, flags: UInt32.max)
                let accepted = (1...8).contains(action) && (1...6).contains(state)
                #expect((request.rejection == nil) == accepted, "\(action), \(state)")
            }
        }
    }

    @Test("A rejection names the value that is to blame")
    func rejectionText() throws {
        let state = try #require(PowerRequest(action: 5, minimumState: 77, flags: 0).rejection)
        #expect(state.contains("state") && state.contains("77"))
        let action = try #require(PowerRequest(action: 99, minimumState: 5, flags: 0).rejection)
        #expect(action.contains("action") && action.contains("99"))
    }

    @Test("Windows' values have Windows' names")
    func names() {
        #expect(PowerAction.allCases.map(\.rawValue) == Array(0...8))
        #expect(SystemPowerState.allCases.map(\.rawValue) == Array(0...7))
        #expect(PowerAction(rawValue: 5)?.windowsName == "PowerActionShutdownReset")
        #expect(SystemPowerState(rawValue: 5)?.windowsName == "PowerSystemHibernate")
        #expect(Set(PowerAction.allCases.map(\.windowsName)).count == 9)
        #expect(Set(SystemPowerState.allCases.map(\.windowsName)).count == 8)
    }
}
