import Foundation
import Glibc
import HostProcesses

/// How to start the bundled guest.
public struct GuestConfiguration: Sendable {
    /// What the guest is built for, and in the shape of which Windows.
    public enum Architecture: String, CaseIterable, Sendable {
        /// Windows 10, builds 19041 to 19045.
        case x64 = "x64"
        /// Windows 7 SP1 with physical address extension: page tables of three levels.
        case x86PAE = "x86-pae"
        /// Windows 7 SP1 without it: page tables of two levels.
        case x86 = "x86"

        /// What the name of a kernel has before its optimisation.
        var kernelPrefix: String { self == .x64 ? "" : "\(rawValue)-" }
        /// What the names of the programs have after them.
        var programSuffix: String { self == .x64 ? "" : "-x86" }
    }

    public enum Optimisation: String, CaseIterable, Sendable {
        case o0 = "O0"
        case o2 = "O2"
        case os = "Os"
    }

    /// How the power function calls itself again from kernel mode.
    public enum Reentry: String, CaseIterable, Sendable {
        /// In its own body.
        case direct
        /// In a callee's callee.
        case deep
    }

    /// What the guest is built for, by which its kernel and its programs are chosen.
    public var architecture = Architecture.x64
    public var optimisation = Optimisation.o2
    public var reentry = Reentry.direct
    /// QEMU's machine type.
    public var machine = "pc"
    /// In MiB.
    public var memory = 128
    /// QEMU's RAM can be mapped by others.
    public var sharesMemory = true
    /// Not started until told to (`-S`).
    public var startsPaused = false
    /// QMP on a loopback TCP port rather than on a unix socket.
    public var usesTCP = false
    /// The path of a disk to hibernate to.
    public var disk: String?
    /// Further arguments of QEMU's.
    public var extraArguments: [String] = []

    public init() {}

    /// Which kernel it is, as the guest says itself: `O2-direct`, `x86-pae-O2-direct`.
    public var variant: String {
        "\(architecture.kernelPrefix)\(optimisation.rawValue)-\(reentry.rawValue)"
    }
}

/// Why the bundled guest could not be started.
public enum GuestStartError: Error, CustomStringConvertible {
    case programMissing(String)
    case artifactMissing(String)
    case failed(String)

    public var description: String {
        switch self {
        case .programMissing(let name):
            "\(name) is not installed (Debian: apt install qemu-system-x86)"
        case .artifactMissing(let name):
            "the bundled guest's \(name) is missing beside the program; build it again with \"make build\""
        case .failed(let why): "QEMU did not start: \(why)"
        }
    }
}

/// The bundled guest in a QEMU of its own, which ends with this object or this process.
public final class BundledGuestMachine {
    public let process: DependentProcess
    public let console: GuestConsole
    /// Where QEMU's QMP socket is, as Vigil's TARGET has it.
    public let target: String
    /// The path of a second QMP socket, for whoever operates the machine beside Vigil.
    public let operatorSocket: String
    /// What QEMU itself printed goes there.
    public let logFile: URL
    private let folder: URL

    /// Starts QEMU. The guest then boots; `waitUntilReady` waits for it.
    public init(_ configuration: GuestConfiguration = GuestConfiguration()) throws {
        guard let qemu = Self.find("qemu-system-x86_64") else {
            throw GuestStartError.programMissing("qemu-system-x86_64")
        }
        // Short: a socket's path has 107 bytes at most.
        let folder = URL(fileURLWithPath: "/tmp/vigil-\(getpid())-\(UInt32.random(in: .min ... .max))")
        try FileManager.default.createDirectory(
            at: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        self.folder = folder
        logFile = folder.appendingPathComponent("qemu.log")

        let suffix = configuration.architecture.programSuffix
        let modules = try ["ntoskrnl-\(configuration.variant).exe", "ntdll\(suffix).dll", "app\(suffix).exe"]
            .map { try Self.artifact($0) }
        var arguments = [
            "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg",
            "-machine",
            configuration.sharesMemory ? "\(configuration.machine),memory-backend=ram" : configuration.machine,
            "-m", String(configuration.memory),
            "-kernel", try Self.artifact("loader"), "-initrd", modules.joined(separator: ","),
            "-chardev", "socket,id=serial,fd=3", "-serial", "chardev:serial", "-name", "bundled-guest",
        ]
        if configuration.sharesMemory {
            arguments += ["-object", "memory-backend-memfd,id=ram,size=\(configuration.memory)M,share=on"]
        }
        operatorSocket = folder.appendingPathComponent("operator").path
        arguments += ["-qmp", "unix:\(operatorSocket),server=on,wait=off"]
        if configuration.usesTCP {
            let port = try Self.freePort()
            arguments += ["-qmp", "tcp:127.0.0.1:\(port),server=on,wait=off"]
            target = "qemu:127.0.0.1:\(port)"
        } else {
            let socket = folder.appendingPathComponent("qmp").path
            arguments += ["-qmp", "unix:\(socket),server=on,wait=off"]
            target = "qemu:\(socket)"
        }
        if configuration.startsPaused { arguments.append("-S") }
        if let disk = configuration.disk { arguments += ["-drive", "file=\(disk),format=raw,if=ide"] }
        arguments += configuration.extraArguments

        var pair: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &pair) == 0 else {
            throw GuestStartError.failed(String(cString: strerror(errno)))
        }
        defer { close(pair[1]) }
        console = GuestConsole(descriptor: pair[0])
        let log = open(logFile.path, O_CREAT | O_WRONLY | O_CLOEXEC | O_APPEND, 0o600)
        defer { close(log) }
        do {
            process = try DependentProcess(
                path: qemu, arguments: arguments, output: log, errors: log, inherited: pair[1])
        } catch {
            throw GuestStartError.failed(error.description)
        }
    }

    deinit {
        process.kill()
        try? FileManager.default.removeItem(at: folder)
    }

    /// Waits until the guest takes commands.
    /// - Returns: the line in which it says which build it is.
    @discardableResult
    public func waitUntilReady(within timeout: Duration = .seconds(120)) throws -> String {
        do {
            return try console.waitForLine(containing: "Vigil guest ready", within: timeout)
        } catch {
            let output = (try? String(contentsOf: logFile, encoding: .utf8)) ?? ""
            throw GuestStartError.failed("\(error)\(output)")
        }
    }

    /// Waits until QEMU's QMP socket is there: it is made shortly after the start, and nothing tells when.
    public func waitForSocket(within timeout: Duration = .seconds(20)) throws {
        guard target.contains("/") else { return }
        let path = String(target.dropFirst("qemu:".count))
        let deadline = ContinuousClock.now + timeout
        while access(path, F_OK) != 0 {
            guard ContinuousClock.now < deadline, process.isRunning else {
                throw GuestStartError.failed((try? String(contentsOf: logFile, encoding: .utf8)) ?? "no socket")
            }
            usleep(2000)
        }
    }

    /// The path of a file of the guest's.
    public static func artifact(_ name: String) throws -> String {
        guard let path = Bundle.module.path(forResource: name, ofType: nil) else {
            throw GuestStartError.artifactMissing(name)
        }
        return path
    }

    /// The path of a program on PATH.
    public static func find(_ program: String) -> String? {
        let folders = (ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin").split(separator: ":")
        return folders.map { "\($0)/\(program)" }.first { FileManager.default.isExecutableFile(atPath: $0) }
    }

    private static func freePort() throws -> UInt16 {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(descriptor) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let bound = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, length) == 0 && getsockname(descriptor, $0, &length) == 0
            }
        }
        guard bound else { throw GuestStartError.failed("no free port") }
        return UInt16(bigEndian: address.sin_port)
    }
}
