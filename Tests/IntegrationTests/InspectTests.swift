import BundledGuest
import Foundation
import Testing

extension Integration {
    /// Looking leaves no trace.
    @Suite(.serialized)
    struct InspectTests {
        @Test("inspect leaves RAM and run state of a stopped guest as they were")
        func stopped() throws {
            let guest = try BundledGuestMachine.ready()
            let before = try {
                let seen = try Operator(guest)
                try seen.command("stop")
                return (try seen.memory(), try seen.chardevs())
            }()
            let result = try VigilProcess.run("inspect", guest.target, "--format", "json")
            #expect(result.status == 0, "\(result.errors)")
            #expect(VigilEvent(result.output)?.string("runState") == "paused")
            let seen = try Operator(guest)
            #expect(try seen.runState() == .paused)
            #expect(try seen.chardevs() == before.1)
            #expect(try seen.memory() == before.0)
        }

        @Test("inspect neither stops a running guest nor adds a chardev to it")
        func running() throws {
            let guest = try BundledGuestMachine.ready()
            let seen = try Operator(path: guest.operatorSocket)
            let chardevs = try seen.chardevs()
            let result = try VigilProcess.run("inspect", guest.target)
            #expect(result.status == 0, "\(result.errors)")
            #expect(result.output.contains("NtSetSystemPowerState at 0x"))
            #expect(result.output.contains("crash        seen at KeBugCheck2, 0x"))
            #expect(seen.events().filter { $0 != "RTC_CHANGE" } == [])
            #expect(try seen.chardevs() == chardevs)
            #expect(try seen.runState() == .running)
            #expect(try guest.console.run("ping").result == "ok pong")
        }
    }
}
