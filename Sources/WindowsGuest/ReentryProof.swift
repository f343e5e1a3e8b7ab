import GuestMemory
import X86

/// Whether a system service calls itself again through the kernel's own stub.
///
/// NtSetSystemPowerState, called from user mode, checks the caller's privilege and then calls
/// ZwSetSystemPowerState, so that the same function is entered a second time from kernel mode. That is what lets
/// Vigil take the second call for the request; so it is proved on the code of this very kernel: the function and
/// its callees to depth three are decoded along all paths, and one of them must call, or jump to, a stub that
/// carries the function's own number.
public struct ReentryProof {
    public enum Verdict: Hashable, Sendable {
        /// From the function over the callees to the stub.
        case proved(path: [GuestVirtualAddress])
        /// All that could be followed was, and none of it re-enters. Branches through registers and memory
        /// cannot be followed; so many there were.
        case notFound(unfollowedBranches: Int)
        /// The answer is not known: why, in words.
        case undecided(String)
    }

    /// Callees of callees of callees are still looked into.
    public static let depth = 3
    /// In one function, and in all.
    static let maximumInstructionsPerFunction = 1 << 14
    static let maximumInstructions = 1 << 18
    static let maximumFunctions = 1 << 13

    private let kernel: WindowsKernel
    private let serviceEntry: GuestVirtualAddress?

    public init(of kernel: WindowsKernel, serviceTable: ServiceTable) {
        self.kernel = kernel
        serviceEntry = serviceTable.serviceEntry
    }

    /// Looks for the re-entry of the service at `function` with this number.
    public func examine(_ function: GuestVirtualAddress, number: UInt32) -> Verdict {
        guard let serviceEntry else { return .undecided("no Zw stub is exported that would tell their shape") }
        var search = Search(kernel: kernel, serviceEntry: serviceEntry, number: number)
        return search.run(from: function)
    }
}

/// A search through the call graph, breadth first: the nearest re-entry is found first.
private struct Search {
    let kernel: WindowsKernel
    let serviceEntry: GuestVirtualAddress
    let number: UInt32
    let reader: CodeReader
    /// Decoded stubs by address; nil for functions that are none.
    var stubs: [GuestVirtualAddress: SystemCallStub.Kernel?] = [:]
    var instructions = 0
    var unfollowed = 0
    var obstacle: String?

    init(kernel: WindowsKernel, serviceEntry: GuestVirtualAddress, number: UInt32) {
        self.kernel = kernel
        self.serviceEntry = serviceEntry
        self.number = number
        reader = CodeReader(kernel.memory)
    }

    mutating func run(from function: GuestVirtualAddress) -> ReentryProof.Verdict {
        var level = [[function]]
        var known: Set<GuestVirtualAddress> = [function]
        for depth in 0...ReentryProof.depth {
            var next: [[GuestVirtualAddress]] = []
            for path in level {
                guard let current = path.last else { continue }
                switch explore(current) {
                case .stub(let address): return .proved(path: path + [address])
                case .callees(let callees):
                    guard depth < ReentryProof.depth else { continue }
                    for callee in callees where known.insert(callee).inserted {
                        guard known.count <= ReentryProof.maximumFunctions else {
                            obstacle = obstacle ?? "it calls too many functions to look into all"
                            break
                        }
                        next.append(path + [callee])
                    }
                }
            }
            level = next
        }
        if let obstacle { return .undecided(obstacle) }
        return .notFound(unfollowedBranches: unfollowed)
    }

    enum Exploration {
        case stub(GuestVirtualAddress)
        case callees([GuestVirtualAddress])
    }

    /// Decodes one function along all of its paths.
    private mutating func explore(_ function: GuestVirtualAddress) -> Exploration {
        var pending = [function]
        var visited: Set<GuestVirtualAddress> = []
        var callees: [GuestVirtualAddress] = []
        while let start = pending.popLast() {
            var address = start
            while visited.insert(address).inserted {
                instructions += 1
                guard visited.count <= ReentryProof.maximumInstructionsPerFunction,
                    instructions <= ReentryProof.maximumInstructions
                else {
                    obstacle = obstacle ?? "the function at \(function) is too long to follow all of it"
                    return .callees(callees)
                }
                guard kernel.image.isExecutable(address), let instruction = decode(address) else { break }
                if let target = instruction.relativeTarget.map({ GuestVirtualAddress($0) }) {
                    if instruction.isCall || instruction.isUnconditionalJump {
                        if let stub = stub(at: target) {
                            if stub.number == number { return .stub(target) }
                            // Another service's stub leads into the dispatcher, not further on.
                            if !instruction.isCall { break }
                        } else if instruction.isCall {
                            callees.append(target)
                        }
                    }
                    if instruction.isConditionalJump { pending.append(target) }
                    if instruction.isUnconditionalJump {
                        address = target
                        continue
                    }
                } else if instruction.isIndirectBranch {
                    unfollowed += 1
                }
                guard instruction.fallsThrough else { break }
                address = GuestVirtualAddress(instruction.nextAddress)
            }
        }
        return .callees(callees)
    }

    private mutating func decode(_ address: GuestVirtualAddress) -> Instruction? {
        do throws(MemoryError) {
            return try reader.instruction(at: address)
        } catch {
            obstacle = obstacle ?? "code at \(address) cannot be read now: \(error)"
            return nil
        }
    }

    /// The stub at a call's target: its shape, and the jump to where all the kernel's stubs jump to.
    private mutating func stub(at address: GuestVirtualAddress) -> SystemCallStub.Kernel? {
        if let known = stubs[address] { return known }
        var found: SystemCallStub.Kernel?
        if kernel.image.isExecutable(address),
            let stub = try? SystemCallStub.kernel(at: address, reader: reader), stub.serviceEntry == serviceEntry
        {
            found = stub
        }
        stubs[address] = .some(found)
        return found
    }
}
