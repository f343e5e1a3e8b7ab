import CLinux
import GuestMemory
import HypervisorInterface
import Testing

@testable import QEMUHypervisor

@Suite("Lines of a process's map") struct MappedAreaTests {
    @Test("A shared mapping of a memory file is read, whatever its name holds")
    func shared() throws {
        let line =
            "7f1c00000000-7f1c08000000 rw-s 00100000 00:01 2058                       /memfd:memory-backend-memfd (deleted)"
        let area = try #require(MappedArea(line[...]))
        #expect(area.start == 0x7f1c_0000_0000 && area.end == 0x7f1c_0800_0000 && area.isShared)
        #expect(area.offset == 0x10_0000 && area.device == clinux_device(0, 1) && area.inode == 2058)
    }

    @Test("A private mapping, with or without a file, is not shared")
    func notShared() throws {
        let file = try #require(MappedArea("55d0c8a00000-55d0c8b00000 r-xp 00001000 fe:10 123456 /usr/bin/qemu"[...]))
        #expect(!file.isShared && file.device == clinux_device(0xfe, 0x10) && file.inode == 123456)
        let anonymous = try #require(MappedArea("7f1c00000000-7f1c08000000 rw-p 00000000 00:00 0 "[...]))
        #expect(!anonymous.isShared && anonymous.inode == 0)
    }

    @Test(
        "Other lines are none",
        arguments: [
            "", "7f1c00000000 rw-s 0 00:01 1", "x-y rw-s 0 00:01 1", "1000-2000 rw-s 0 0001 1",
            "1000-2000 rw-s 0 00:01",
            "1000-2000 rw-s zz 00:01 1", "1000-2000 rw-s 0 00:01 -1", "1000-2000-3000 rw-s 0 00:01 1",
        ])
    func others(line: String) {
        #expect(MappedArea(line[...]) == nil)
    }

    @Test("It contains a region that lies in it wholly, and no other")
    func contains() throws {
        let area = try #require(MappedArea("1000-5000 rw-s 0 00:01 1"[...]))
        func region(_ start: UInt64, _ length: UInt64) -> RAMRegion {
            RAMRegion(base: GuestPhysicalAddress(0), length: length, hostAddress: start)
        }
        #expect(area.contains(region(0x1000, 0x4000)) && area.contains(region(0x4000, 0x1000)))
        #expect(!area.contains(region(0xfff, 0x1000)) && !area.contains(region(0x4000, 0x1001)))
        #expect(!area.contains(region(0x5000, 1)) && !area.contains(region(0x6000, 0x1000)))
        #expect(!area.contains(region(0x2000, .max)) && !area.contains(region(.max, 1)))
    }
}

@Suite("Naming a QEMU") struct QEMUTargetTests {
    @Test(
        "A path is what has a slash or no port; an address is a host and a port",
        arguments: [
            ("/run/qmp.sock", .unix(path: "/run/qmp.sock")), ("qmp.sock", .unix(path: "qmp.sock")),
            ("./a:1", .unix(path: "./a:1")), ("/run/a:4444", .unix(path: "/run/a:4444")),
            ("localhost:4444", .tcp(host: "localhost", port: "4444")),
            ("10.0.0.1:1", .tcp(host: "10.0.0.1", port: "1")),
            ("::1:4444", .tcp(host: "::1", port: "4444")), ("localhost:65535", .tcp(host: "localhost", port: "65535")),
            ("localhost:65536", .unix(path: "localhost:65536")), ("localhost:0", .unix(path: "localhost:0")),
            ("localhost:", .unix(path: "localhost:")), ("localhost:qmp", .unix(path: "localhost:qmp")),
            (":4444", .unix(path: ":4444")), ("", .unix(path: "")),
        ] as [(String, QEMUTarget)])
    func parses(text: String, target: QEMUTarget) {
        #expect(QEMUTarget(text) == target)
        #expect(target.description == "qemu:" + text)
    }

    static func failure(_ target: QEMUTarget) -> String? {
        do throws(HypervisorError) {
            _ = try target.connect()
            return nil
        } catch {
            return error.description
        }
    }

    @Test("What cannot be connected to is named, with the reason")
    func failures() throws {
        let missing = try #require(Self.failure(.unix(path: "/nonexistent/qmp.sock")))
        #expect(missing.contains("qemu:/nonexistent/qmp.sock") && missing.contains("no such socket"))
        let file = try #require(Self.failure(.unix(path: "/proc/self/status")))
        #expect(file.contains("not a socket"))
        let long = try #require(Self.failure(.unix(path: "/" + String(repeating: "x", count: 200))))
        #expect(long.contains("107 bytes"))
    }
}
