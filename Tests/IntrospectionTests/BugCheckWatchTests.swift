import HypervisorInterface
import Introspection
import TestSupport
import Testing
import X86

@Suite("Where a crash is waited for") struct BugCheckWatchTests {
    private static func guest(finds: Bool) throws -> AgentGuest {
        var options = SyntheticKernelOptions()
        options.bugChecks = BugCheckCode.windows
        if !finds { options.withoutExports = ["KeBugCheck"] }
        return try AgentGuest(options)
    }

    @Test(
        "At KeBugCheck2 where that was found, else at KeBugCheckEx: who comes by finds the agent zeroed",
        arguments: [true, false])
    func watched(finds: Bool) throws {
        let test = try Self.guest(finds: finds)
        let kernel = test.guest.kernel
        let names = finds ? ["KeBugCheck2", "KeBugCheckEx"] : ["KeBugCheckEx", "KeBugCheck2"]
        let places = names.map { kernel.address($0) }
        _ = test.run.run(
            test.deployment() + [
                test.look { machine in
                    #expect(machine.sites.contains(.execution(.init(places[0]))))
                    #expect(!machine.sites.contains(.execution(.init(places[1]))))
                    #expect(test.bytes().contains { $0 != 0 })
                },
                { machine in
                    var registers = test.systemCall()
                    registers.rip = places[0]
                    return machine.stop(0, at: registers)
                },
                test.look { _ in #expect(test.bytes().allSatisfy { $0 == 0 }) },
            ])
        #expect(test.words.contains("withdrawn zeroed") && test.run.isClean)
    }
}
