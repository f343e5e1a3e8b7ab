import Detours
import Glibc
import Synchronization
import Testing

@Suite("The detour's handler without a delay function", .serialized) struct SpinningHandlerTests {
    /// A caller in the handler, on a thread of its own.
    private final class Spinner: Sendable {
        let run: HandlerRun
        private let out = Atomic(false)
        var isOut: Bool { out.load(ordering: .acquiring) }
        let result = Mutex<[String]>([])
        let state: ProcessorState

        init(_ run: HandlerRun) {
            self.run = run
            state = DetourHandlerTests.caller(run, flags: DetourHandlerTests.allFlags)
        }

        func start() -> pthread_t {
            var thread = pthread_t()
            let status = pthread_create(
                &thread, nil,
                { argument in
                    let spinner = Unmanaged<Spinner>.fromOpaque(argument!).takeRetainedValue()
                    let result = spinner.run.run(spinner.state, slot: 4)
                    spinner.result.withLock { $0 = result.differences(from: spinner.state) }
                    spinner.out.store(true, ordering: .releasing)
                    return nil
                }, Unmanaged.passRetained(self).toOpaque())
            precondition(status == 0)
            return thread
        }

        /// Waits until the thread has spent some of its own time, or is out.
        func letSpin(_ thread: pthread_t, nanoseconds: Int) {
            var clock = clockid_t()
            pthread_getcpuclockid(thread, &clock)
            var spent = timespec()
            repeat {
                sched_yield()
                clock_gettime(clock, &spent)
            } while spent.tv_sec == 0 && spent.tv_nsec < nanoseconds && !isOut
        }
    }

    @Test("It spins until another thread clears its byte")
    func byteEndsIt() {
        let spinner = Spinner(HandlerRun(delays: false))
        spinner.run[wait: 4] = 1
        let thread = spinner.start()
        spinner.letSpin(thread, nanoseconds: 5_000_000)
        #expect(!spinner.isOut)
        spinner.run[wait: 4] = 0
        spinner.letSpin(thread, nanoseconds: 500_000_000)
        #expect(spinner.isOut)
        spinner.run.time += HandlerRun.leaseLimit
        pthread_join(thread, nil)
        #expect(spinner.result.withLock { $0 } == [])
        #expect(spinner.run.calls.isEmpty)
    }

    @Test("It spins until the lease has run out")
    func leaseEndsIt() {
        let spinner = Spinner(HandlerRun(delays: false))
        spinner.run[wait: 4] = 1
        let thread = spinner.start()
        spinner.letSpin(thread, nanoseconds: 5_000_000)
        #expect(!spinner.isOut)
        spinner.run.time += HandlerRun.leaseLimit
        spinner.letSpin(thread, nanoseconds: 500_000_000)
        #expect(spinner.isOut)
        spinner.run[wait: 4] = 0
        pthread_join(thread, nil)
        #expect(spinner.result.withLock { $0 } == [])
    }
}
