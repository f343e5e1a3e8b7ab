import Detours
import GuestMemory
import HypervisorInterface
import PowerTransitions
import WindowsGuest

/// What can be known of a guest's kernel without stopping the guest: all that arming needs.
public struct GuestSurvey {
    public let kernel: WindowsKernel
    public let offsets: KernelOffsets
    public let powerFunction: PowerFunction
    public let serviceTable: Result<ServiceTable, DiscoveryError>
    public let reentry: ReentryProof.Verdict
    /// Where the handler would be written; or why nowhere.
    public let slack: Result<KernelSlack, DiscoveryError>
    public let means: WaitingMeans
    /// Where a crashing guest comes by; nil where its kernel exports nothing of the kind.
    public let bugCheck: BugCheckFunction?
    /// How long the guest has been awake since its boot; nil where its clock cannot be read, or says nonsense.
    public let awakeTime: Duration?

    /// Looks at a guest, which may be running.
    /// - Throws: the first thing that is missing; `canBeRetried` says whether it may come.
    public init(
        _ machine: any VirtualMachine, patterns: [FunctionPatterns]
    ) throws(EngineError) {
        let tables: [ProcessorTables]
        do throws(HypervisorError) {
            tables = try machine.processorTables()
        } catch {
            throw .hypervisor(error)
        }
        do throws(DiscoveryError) {
            kernel = try KernelLocator(physical: machine.memory).locate(among: tables)
            offsets = try KernelOffsets(of: kernel)
            let processes = try ProcessList(of: kernel, offsets: offsets).processes()
            powerFunction = try PowerFunctionLocator(of: kernel, processes: processes, patterns: patterns).locate()
            do throws(DiscoveryError) {
                serviceTable = .success(try ServiceTable(of: kernel))
            } catch {
                serviceTable = .failure(error)
            }
            if let number = powerFunction.number, let table = try? serviceTable.get() {
                reentry = ReentryProof(of: kernel, serviceTable: table).examine(powerFunction.address, number: number)
            } else {
                reentry = .undecided("its system-call number is not known")
            }
            do throws(DiscoveryError) {
                slack = .success(try KernelSlack.find(DetourHandler.length, in: kernel))
            } catch {
                slack = .failure(error)
            }
            bugCheck = try? BugCheckFunction(of: kernel, patterns: patterns)
            let time = try? SharedUserData(of: kernel).unbiasedInterruptTime()
            // A bias above the time itself.
            awakeTime = time.flatMap { $0 >> 63 == 0 ? .microseconds(Int64($0 / 10)) : nil }
            let delayFunction = try? kernel.export("KeDelayExecutionThread")
            means = WaitingMeans(
                delayFunction: delayFunction,
                sharedData: time != nil ? kernel.architecture.layout.sharedUserData : nil,
                push: delayFunction.flatMap { [memory = kernel.memory] in PushInstruction(near: $0, in: memory) })
        } catch {
            throw .discovery(error)
        }
    }

    /// What names this boot of the guest.
    public var boot: BootIdentity { BootIdentity(of: kernel) }

    /// A user-mode call of the power function is known to call it again from kernel mode.
    public var reentryIsProved: Bool { if case .proved = reentry { true } else { false } }
}
