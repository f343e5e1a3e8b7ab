import BundledGuest
import Foundation
import Glibc
import HypervisorInterface
import MemoryImage
import Testing

@testable import QEMUHypervisor

/// A folder below /tmp that goes with its object. Dumps are as large as a guest's RAM.
private final class DumpFolder {
    let path = "/tmp/vigil-dumps-\(getpid())-\(UInt32.random(in: .min ... .max))"

    init() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func file(_ name: String) -> String { "\(path)/\(name)" }
}

extension Operator {
    /// `dump-guest-memory` to a file.
    fileprivate func dump(to path: String, paging: Bool = false, format: String? = nil) throws {
        var arguments: [String: JSONValue] = ["paging": .bool(paging), "protocol": .string("file:\(path)")]
        if let format { arguments["format"] = .string(format) }
        try qmp.execute("dump-guest-memory", .object(arguments))
    }

    /// `pmemsave` of all RAM of a guest with 128 MiB.
    fileprivate func saveMemory(to path: String) throws {
        try qmp.execute(
            "pmemsave", ["val": .integer(0), "size": .integer(128 << 20), "filename": .string(path)])
    }
}

extension Integration {
    /// What is seen in a guest's dump is what is seen in the guest.
    @Suite(.serialized)
    struct DumpTests {
        /// What a report says of the guest rather than of the way to it, and when.
        private func findings(
            _ target: String, sourceLocation: SourceLocation = #_sourceLocation
        ) throws -> [String: String] {
            let result = try VigilProcess.run("inspect", target, "--format", "json")
            #expect(result.status == 0, "\(target): \(result.errors)", sourceLocation: sourceLocation)
            let report = try #require(VigilEvent(result.output), "\(result.output)", sourceLocation: sourceLocation)
            let ofTarget: Set = [
                "timestamp", "machine", "hypervisor", "pid", "runState", "memory", "memoryBytes", "wouldArm",
                "obstacle",
            ]
            return report.members.filter { !ofTarget.contains($0.key) }.mapValues { "\($0)" }
        }

        /// The lines of a report for people that say what is in the guest.
        private func lines(_ target: String) throws -> [Substring] {
            let output = try VigilProcess.run("inspect", target).output
            return output.split(separator: "\n").filter { line in
                !["machine ", "memory ", "would arm"].contains { line.hasPrefix($0) }
            }
        }

        @Test(
            "inspect of a dump agrees with inspect of the guest in all it says of the guest, in each way to dump",
            arguments: [1, 2])
        func agrees(vcpus: Int) throws {
            var configuration = GuestConfiguration.tested
            configuration.extraArguments = ["-smp", "\(vcpus)"]
            let guest = try BundledGuestMachine.ready(configuration)
            let folder = try DumpFolder()
            let seen = try Operator(path: guest.operatorSocket)
            // The same instant for all.
            try seen.command("stop")
            let live = try findings(guest.target)
            #expect(live.count >= 15, "\(live)")
            #expect(live["powerFunction"]?.hasPrefix("0x") == true)
            let liveLines = try lines(guest.target)
            try seen.dump(to: folder.file("plain"))
            try seen.dump(to: folder.file("paging"), paging: true)
            try seen.saveMemory(to: folder.file("raw"))
            for name in ["plain", "paging", "raw"] {
                #expect(try findings(folder.file(name)) == live, "\(name)")
                #expect(try lines(folder.file(name)) == liveLines, "\(name)")
            }
            #expect(try seen.runState() == .paused)
            // What the dump says of itself.
            let report = try #require(
                VigilEvent(try VigilProcess.run("inspect", folder.file("plain"), "--format", "json").output))
            #expect(report.string("memory") == "ELF core, with the registers of \(vcpus) vCPU\(vcpus == 1 ? "" : "s")")
            #expect(report.string("hypervisor") == "ELF core by QEMU" && report.string("runState") == "image")
            #expect(report.members["wouldArm"] as? Bool == false)
            #expect(report.string("obstacle") == "a memory image can only be looked at")
            // The firmware's ROM is in it too.
            #expect(report.int("memoryBytes") == 128 << 20 + 256 << 10)
        }

        @Test("A core without its notes is searched, and the search finds what the notes would have said")
        func withoutNotes() throws {
            let guest = try BundledGuestMachine.ready()
            let folder = try DumpFolder()
            let seen = try Operator(path: guest.operatorSocket)
            try seen.command("stop")
            let path = folder.file("core")
            try seen.dump(to: path)
            let whole = try findings(path)
            // PT_NOTE is the first program header; PT_NULL takes its place.
            chmod(path, 0o600)
            let file = try FileHandle(forUpdating: URL(fileURLWithPath: path))
            let header = try #require(try file.read(upToCount: 64))
            let table = UInt64(header[32]) | UInt64(header[33]) << 8
            try file.seek(toOffset: table)
            #expect(try file.read(upToCount: 4) == Data([4, 0, 0, 0]))
            try file.seek(toOffset: table)
            try file.write(contentsOf: Data([0, 0, 0, 0]))
            try file.close()
            let image = try MemoryImage(path: path)
            let tables = try image.processorTables()
            #expect(tables.map(\.isInferred) == [true], "\(tables)")
            #expect(try findings(path) == whole)
        }

        @Test("A guest in its firmware is no kernel yet, in its dump as well")
        func firmware() throws {
            var configuration = GuestConfiguration.tested
            configuration.startsPaused = true
            let guest = try BundledGuestMachine(configuration)
            try guest.waitForSocket()
            let folder = try DumpFolder()
            try Operator(path: guest.operatorSocket).dump(to: folder.file("core"))
            let live = try VigilProcess.run("inspect", guest.target)
            let dumped = try VigilProcess.run("inspect", folder.file("core"), "--wait", "60")
            #expect(live.status == 6 && dumped.status == 6, "\(live) \(dumped)")
            #expect(live.errors == dumped.errors)
        }

        private func expectSentence(
            _ status: Int32, _ words: String, _ arguments: String..., by program: [String] = [],
            sourceLocation: SourceLocation = #_sourceLocation
        ) throws {
            let process = try VigilProcess(arguments, by: program)
            let found = process.exitStatus()
            let text = process.errorText
            #expect(found == status, "\(text)", sourceLocation: sourceLocation)
            #expect(text.contains(words), "\(text)", sourceLocation: sourceLocation)
            #expect(text.split(separator: "\n").count == 1, "\(text)", sourceLocation: sourceLocation)
            #expect(process.outputText.isEmpty, sourceLocation: sourceLocation)
        }

        @Test("Each way in which a file cannot be used has its sentence and its exit code; attach is refused by one")
        func refusals() throws {
            let folder = try DumpFolder()
            func write(_ name: String, _ bytes: [UInt8]) throws -> String {
                try Data(bytes).write(to: URL(fileURLWithPath: folder.file(name)))
                return folder.file(name)
            }
            try expectSentence(3, "no such file", "inspect", folder.file("nowhere"))
            try expectSentence(14, "it is empty", "inspect", try write("empty", []))
            try expectSentence(14, "it is a directory", "inspect", folder.path)
            try expectSentence(14, "no core (its type is 3", "inspect", "/proc/self/exe")
            // A header for AArch64, and one that ends in the middle.
            var header = [UInt8](repeating: 0, count: 64)
            header.replaceSubrange(0..<7, with: [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1])
            header.replaceSubrange(16..<20, with: [4, 0, 183, 0])
            try expectSentence(
                14, "another machine than an x86 PC (ELF machine 183)", "inspect", try write("arm", header))
            try expectSentence(14, "cut short", "inspect", try write("short", Array(header[..<40])))
            try expectSentence(
                7, "no Windows kernel", "inspect", try write("zeroes", [UInt8](repeating: 0, count: 1 << 20)))
            let raw = try write("raw", [UInt8](repeating: 0, count: 4096))
            try expectSentence(15, "can only be looked at (vigil inspect)", "attach", raw)
            if getuid() == 0 {
                // Root may read everything: as somebody else.
                chmod(raw, 0)
                chmod(folder.path, 0o755)
                try expectSentence(
                    3, "permission denied", "inspect", raw,
                    by: ["/usr/bin/setpriv", "--reuid=65534", "--clear-groups"])
            } else {
                chmod(raw, 0)
                try expectSentence(3, "permission denied", "inspect", raw)
            }
        }

        @Test("A dump that QEMU compressed is refused by its format's name")
        func compressed() throws {
            let guest = try BundledGuestMachine.ready()
            let folder = try DumpFolder()
            try Operator(path: guest.operatorSocket).dump(to: folder.file("kdump"), format: "kdump-zlib")
            try expectSentence(14, "kdump file, flattened", "inspect", folder.file("kdump"))
        }
    }
}
