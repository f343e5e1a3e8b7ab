import GuestMemory
import WindowsGuest

/// What agents need of a kernel. Everything but the `ret` is exported by every x64 kernel.
public struct AgentFunctions: Equatable, Sendable {
    public var allocate, free, createThread, terminateThread, close: GuestVirtualAddress
    public var initializeEvent, setEvent, wait: GuestVirtualAddress
    /// A `ret`: whatever it was part of, nothing but this byte executes.
    public var returnInstruction: GuestVirtualAddress
    /// KUSER_SHARED_DATA.
    public var sharedData: GuestVirtualAddress

    /// For a manager without agents, which calls nothing.
    public static let none = {
        let nowhere = GuestVirtualAddress(0)
        return AgentFunctions(
            allocate: nowhere, free: nowhere, createThread: nowhere, terminateThread: nowhere, close: nowhere,
            initializeEvent: nowhere, setEvent: nowhere, wait: nowhere, returnInstruction: nowhere,
            sharedData: nowhere)
    }()
}

extension AgentFunctions {
    /// - Throws: the first thing that is missing.
    public init(of kernel: WindowsKernel) throws(DiscoveryError) {
        allocate = try kernel.export("ExAllocatePoolWithTag")
        free = try kernel.export("ExFreePoolWithTag")
        createThread = try kernel.export("PsCreateSystemThread")
        terminateThread = try kernel.export("PsTerminateSystemThread")
        close = try kernel.export("ZwClose")
        initializeEvent = try kernel.export("KeInitializeEvent")
        setEvent = try kernel.export("KeSetEvent")
        wait = try kernel.export("KeWaitForSingleObject")
        sharedData = SharedUserData.address
        returnInstruction = try Self.findReturn(after: setEvent, in: kernel.memory)
    }

    /// The first `ret` (C3, Intel SDM volume 2, RET) at or after a function's entry, on the same page: that is as
    /// present as the function.
    private static func findReturn(
        after function: GuestVirtualAddress, in memory: KernelMemory
    ) throws(DiscoveryError) -> GuestVirtualAddress {
        for start in [function, function.page] {
            let count = 4096 - start.rawValue & 4095
            guard let bytes = try? memory.hardware.bytes(at: start, count: count, maximum: 4096),
                let index = bytes.firstIndex(of: 0xc3)
            else { continue }
            return start + UInt64(index)
        }
        throw .notFound("a return instruction near \(function)")
    }
}
