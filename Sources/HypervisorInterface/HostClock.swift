import Glibc

/// The host's clock that also counts what happened before this process.
public enum HostClock {
    /// Time since the host's boot, the host's own sleep included (CLOCK_BOOTTIME).
    public static var sinceBoot: Duration {
        var time = timespec()
        clock_gettime(CLOCK_BOOTTIME, &time)
        return .seconds(time.tv_sec) + .nanoseconds(time.tv_nsec)
    }
}
