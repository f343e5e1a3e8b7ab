import Glibc

/// When a process of this host started.
enum ProcessStart {
    /// Reads it from /proc.
    /// - Returns: the time after the host's boot, to a tick (10 ms); nil where there is no such process.
    static func of(_ pid: Int32) -> Duration? {
        guard let text = ProcessFile.read("stat", of: pid) else { return nil }
        return parse(text, ticksPerSecond: sysconf(Int32(_SC_CLK_TCK)))
    }

    /// The 22nd field of /proc/PID/stat (proc(5)), in ticks. The second, in parentheses, is the program's name,
    /// which may hold anything.
    static func parse(_ stat: String, ticksPerSecond: Int) -> Duration? {
        guard ticksPerSecond > 0, let name = stat.lastIndex(of: ")") else { return nil }
        let fields = stat[stat.index(after: name)...].split(separator: " ")
        guard fields.count > 19, let ticks = Int64(fields[19]), ticks >= 0, ticks < 1 << 48 else { return nil }
        return .milliseconds(ticks * 1000 / Int64(ticksPerSecond))
    }
}
