import Glibc
import HypervisorInterface
import Testing

@testable import QEMUHypervisor

@Suite("When a process started") struct ProcessStartTests {
    /// proc(5), with a program's name that looks like more fields.
    static func line(name: String = "qemu-system-x86", start: String = "123456") -> String {
        "4711 (\(name)) S 1 4711 4711 0 -1 4194560 100 0 0 0 10 20 0 0 20 0 5 0 \(start) 1000000 500 18446744073709551615 1"
    }

    @Test(
        "The 22nd field is the start, whatever the program is called", arguments: ["qemu", "a) S 1 (b", "", "x y) z"])
    func parses(name: String) {
        #expect(ProcessStart.parse(Self.line(name: name), ticksPerSecond: 100) == .milliseconds(1_234_560))
        #expect(ProcessStart.parse(Self.line(name: name), ticksPerSecond: 1000) == .milliseconds(123_456))
    }

    @Test(
        "What is no such line gives nothing",
        arguments: ["", "4711", "4711 (x) S 1 2", line(start: "-1"), line(start: "x")])
    func rejects(text: String) {
        #expect(ProcessStart.parse(text, ticksPerSecond: 100) == nil)
    }

    @Test("This process started before now, and always at the same time; no process did not")
    func own() throws {
        let start = try #require(ProcessStart.of(getpid()))
        #expect(start <= HostClock.sinceBoot && ProcessStart.of(getpid()) == start)
        #expect(ProcessStart.of(-1) == nil)
    }
}

@Suite("Files that describe a process") struct ProcessFileTests {
    @Test("A process's map of its memory is read to the end, however many pieces the kernel gives it in")
    func whole() throws {
        // Areas of their own, so that the map is longer than one piece of it.
        let pages = 400
        let area = try #require(
            mmap(nil, pages * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0).flatMap {
                $0 == MAP_FAILED ? nil : $0
            })
        defer { munmap(area, pages * 4096) }
        for page in stride(from: 0, to: pages, by: 2) { mprotect(area + page * 4096, 4096, PROT_NONE) }
        let text = try #require(ProcessFile.read("maps", of: getpid()))
        let starts = Set(text.split(separator: "\n").compactMap { MappedArea($0)?.start })
        let missing = stride(from: 0, to: pages, by: 2).filter {
            !starts.contains(UInt64(UInt(bitPattern: area)) + UInt64($0) * 4096)
        }
        #expect(missing.count <= 1, "\(missing)")
        #expect(ProcessFile.read("maps", of: -1) == nil)
    }
}
