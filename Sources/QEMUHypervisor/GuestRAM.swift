import CLinux
import FoundationEssentials
import Glibc
import GuestMemory
import HypervisorInterface

/// The guest's RAM as this host can best reach it.
///
/// In order of preference: mapped here, where QEMU shares the RAM's backing file; read from QEMU's
/// memory, where this process may; asked for through QEMU's monitor otherwise. None of them stops the guest.
final class GuestRAM {
    let memory: PhysicalMemory
    /// How the RAM is reached, for people.
    let access: String
    private let way: Way

    private enum Way {
        /// The mappings live as long as this does.
        case mapped([Mapping])
        case process(pid: Int32, [RAMRegion])
        case monitor
    }

    init(monitor: QMPClient, pid: Int32?) throws(HypervisorError) {
        let ranges = MonitorText.ramRanges(try monitor.monitor("info mtree -f"))
        guard !ranges.isEmpty else { throw .unexpectedAnswer("a machine without RAM (info mtree -f)") }
        var regions: [RAMRegion] = []
        for range in ranges {
            let place = String(range.base, radix: 16)
            let host = MonitorText.hostAddress(try monitor.monitor("gpa2hva 0x\(place)"))
            regions.append(
                RAMRegion(base: GuestPhysicalAddress(range.base), length: range.length, hostAddress: host ?? 0))
        }
        if let pid, regions.allSatisfy({ $0.hostAddress != 0 }) {
            if let mappings = Mapping.map(regions, of: pid) {
                way = .mapped(mappings)
                memory = PhysicalMemory(
                    mapped: mappings.map {
                        RAMRegion(
                            base: $0.region.base, length: $0.region.length,
                            hostAddress: UInt64(UInt(bitPattern: $0.start)))
                    })
                access = "mapped: QEMU's RAM is shared"
                return
            }
            var probe: UInt8 = 0
            if clinux_process_read(pid, regions[0].hostAddress, &probe, 1) == 0 {
                way = .process(pid: pid, regions)
                memory = PhysicalMemory(process: pid, regions: regions)
                access = "process memory of QEMU (pid \(pid)): its RAM is not shared"
                return
            }
        }
        way = .monitor
        memory = PhysicalMemory(reader: MonitorMemoryReader(monitor: monitor), regions: regions)
        access =
            pid == nil
            ? "QEMU's monitor: over TCP its process is not known"
            : "QEMU's monitor: no permission to read its process"
    }

    /// Whether the process that it was looked for in holds it: whoever listens on a socket need not be QEMU.
    var isInProcess: Bool { isWritable }

    /// Whether `write` has a way to the RAM.
    var isWritable: Bool {
        if case .monitor = way { false } else { true }
    }

    /// Writes data that is not code, while the guest may run.
    func write(_ bytes: [UInt8], at address: GuestPhysicalAddress) throws(HypervisorError) {
        let regions: [RAMRegion]
        switch way {
        case .mapped: regions = memory.regions
        case .process(_, let remote): regions = remote
        case .monitor: regions = []
        }
        let place = regions.lazy.compactMap { region -> UInt64? in
            let offset = address.rawValue &- region.base.rawValue
            guard offset < region.length, region.length - offset >= UInt64(bytes.count) else { return nil }
            return region.hostAddress &+ offset
        }.first
        guard let place else { throw .unsupported("no RAM at \(address) that could be written to") }
        switch way {
        case .mapped:
            guard let target = UnsafeMutableRawPointer(bitPattern: UInt(place)) else { return }
            bytes.withUnsafeBytes { source in
                if let start = source.baseAddress { target.copyMemory(from: start, byteCount: source.count) }
            }
        case .process(let pid, _):
            let error = clinux_process_write(pid, place, bytes, bytes.count)
            if error != 0 {
                throw .commandFailed(
                    command: "a write to its memory (pid \(pid))", reason: String(cString: strerror(error)))
            }
        case .monitor: break
        }
    }
}

/// One RAM region of QEMU's, mapped here too.
private final class Mapping {
    let region: RAMRegion
    let start: UnsafeMutableRawPointer

    private init(region: RAMRegion, start: UnsafeMutableRawPointer) {
        self.region = region
        self.start = start
    }

    deinit { munmap(start, Int(region.length)) }

    /// Maps all `regions` of process `pid`, or returns nil where one of them is not shared or not to be had.
    static func map(_ regions: [RAMRegion], of pid: Int32) -> [Mapping]? {
        guard let text = ProcessFile.read("maps", of: pid) else { return nil }
        let areas = text.split(separator: "\n").compactMap(MappedArea.init)
        var descriptors = OpenFiles(pid: pid)
        defer { descriptors.closeAll() }
        var result: [Mapping] = []
        for region in regions {
            guard let area = areas.first(where: { $0.contains(region) }), area.isShared, area.inode != 0,
                let file = descriptors.open(device: area.device, inode: area.inode)
            else { return nil }
            let offset = area.offset + (region.hostAddress - area.start)
            guard let address = mmap(nil, Int(region.length), PROT_READ | PROT_WRITE, MAP_SHARED, file, Int(offset)),
                address != MAP_FAILED
            else { return nil }
            result.append(Mapping(region: region, start: address))
        }
        return result
    }
}

/// A line of /proc/PID/maps (proc(5)).
struct MappedArea: Equatable {
    var start: UInt64
    var end: UInt64
    var isShared: Bool
    var offset: UInt64
    var device: UInt64
    var inode: UInt64

    init?(_ line: Substring) {
        let fields = line.split(separator: " ", omittingEmptySubsequences: true)
        guard fields.count >= 5 else { return nil }
        let bounds = fields[0].split(separator: "-")
        let device = fields[3].split(separator: ":")
        guard bounds.count == 2, device.count == 2, let start = UInt64(bounds[0], radix: 16),
            let end = UInt64(bounds[1], radix: 16), let offset = UInt64(fields[2], radix: 16),
            let major = UInt32(device[0], radix: 16), let minor = UInt32(device[1], radix: 16),
            let inode = UInt64(fields[4])
        else { return nil }
        self.start = start
        self.end = end
        self.offset = offset
        self.device = clinux_device(major, minor)
        self.inode = inode
        isShared = fields[1].last == "s"
    }

    func contains(_ region: RAMRegion) -> Bool {
        region.hostAddress >= start && region.length <= end &- region.hostAddress && region.hostAddress < end
    }
}

/// The open files of another process, found by what they are.
private struct OpenFiles {
    let pid: Int32
    private struct Identity: Hashable {
        var device: UInt64
        var inode: UInt64
    }

    private var opened: [Identity: Int32] = [:]

    init(pid: Int32) { self.pid = pid }

    mutating func open(device: UInt64, inode: UInt64) -> Int32? {
        let identity = Identity(device: device, inode: inode)
        if let file = opened[identity] { return file }
        let directory = "/proc/\(pid)/fd"
        guard let names = try? FileManager.default.contentsOfDirectory(atPath: directory) else { return nil }
        for name in names {
            var status = stat()
            guard stat("\(directory)/\(name)", &status) == 0, UInt64(status.st_ino) == inode,
                UInt64(status.st_dev) == device
            else { continue }
            let file = Glibc.open("\(directory)/\(name)", O_RDWR | O_CLOEXEC)
            guard file >= 0 else { continue }
            opened[identity] = file
            return file
        }
        return nil
    }

    mutating func closeAll() {
        for file in opened.values { close(file) }
        opened = [:]
    }
}

/// Reads RAM with the monitor's `xp`, eight bytes a word.
private final class MonitorMemoryReader: PhysicalMemoryReader {
    private let monitor: QMPClient

    init(monitor: QMPClient) { self.monitor = monitor }

    func read(at address: GuestPhysicalAddress, into buffer: UnsafeMutableRawBufferPointer) throws(MemoryError) {
        var done = 0
        while done < buffer.count {
            let place = address.rawValue &+ UInt64(done)
            let aligned = place & ~7
            let skip = Int(place - aligned)
            let words = min((skip + buffer.count - done + 7) / 8, 512)
            let bytes: [UInt8]
            do {
                bytes = MonitorText.dumpedBytes(
                    try monitor.monitor("xp /\(words)xg 0x\(String(aligned, radix: 16))"))
            } catch {
                throw .unreachable(GuestPhysicalAddress(place), errno: EIO)
            }
            guard bytes.count == words * 8 else { throw .notRAM(GuestPhysicalAddress(place)) }
            let part = min(bytes.count - skip, buffer.count - done)
            UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + part]).copyBytes(
                from: bytes[skip..<skip + part])
            done += part
        }
    }
}
