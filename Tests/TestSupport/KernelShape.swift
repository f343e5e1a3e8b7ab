import GuestMemory
import WindowsGuest

/// What an NT-shaped kernel is to be like in everything that one build may have otherwise than another.
///
/// Drawn from a seed, so that a failure can be repeated by it. Shapes of code are those of public disassemblies of
/// Windows XP to 11; everything else (names, order, offsets, numbers, addresses) is anything that a kernel could have.
public struct KernelShape: Sendable {
    /// How the service table can be found.
    public enum TableSource: CaseIterable, Sendable {
        /// KeServiceDescriptorTable is exported.
        case export
        /// The dispatcher can be followed from a stub.
        case dispatcher
        /// The dispatcher's instructions are there, but no straight path leads to them.
        case scan
        /// Nothing but the table and its descriptor.
        case shape
    }

    /// A state that hides something, or a system that is not complete yet.
    public enum Damage: CaseIterable, Sendable {
        case none, headerAbsent, headerZeroed, tableAbsent, exportsAbsent, accessorAbsent, powerFunctionAbsent
        case ntdllAbsent, noNtdll, noSystemProcess
    }

    /// Something that looks like what is looked for, and is not.
    public enum Decoy: CaseIterable, Sendable {
        /// A driver's image before the kernel that claims to be so large that it holds the handlers.
        case foreignImage
        /// The same, but it calls itself by the kernel's name and exports nothing.
        case emptyKernel
        /// An image that is another kernel in all that can be told.
        case secondKernel
        /// Pointers to functions, in a row.
        case fakeTable
        /// The same with a descriptor.
        case describedFakeTable
        /// A copy of the true table with a descriptor of its own.
        case copiedTable
        /// Code that loads two descriptors as the dispatcher does (x64).
        case falseDispatcher
        /// A page of the kernel's own data that starts as an image does.
        case innerImage
        /// A vector that another program has taken.
        case takenVector
        /// A function exported as Zw that carries the power function's number and leads elsewhere.
        case falseStub
        /// The first of the exported Zw stubs leads elsewhere: it is hooked.
        case hookedKernelStub
        /// Forwarders, names and addresses outside the image.
        case lyingExports
        case overlappingSection
        /// A section that ends beyond the image's end.
        case wrappedSection
        /// One process's ntdll is hooked.
        case hookedStub
        /// One process's ntdll gives another number.
        case forgedStub
        /// The user's pattern matches where it should, twice, or elsewhere only.
        case pattern, doublePattern, patternElsewhere
    }

    public enum Viewpoint: CaseIterable, Sendable {
        case system, otherProcess
        /// A vCPU in user mode under page-table isolation; alone, or with another one in the kernel.
        case shadow, shadowAndKernel
    }

    /// How discovery ends.
    public enum Outcome: Hashable, Sendable {
        case found, retryable, ambiguous, disagreement, refused
    }

    public var architecture = KernelArchitecture.x64
    public var mode = PagingMode.fourLevel
    public var build: UInt32 = 19041
    public var base: UInt64 = 0xffff_f806_4a20_0000
    public var moduleName = "ntoskrnl.exe"
    public var sectionAlignment: UInt32 = 0x1000
    /// text, lock, table, data, init, entry.
    public var sectionNames = [".text", "PAGELK", ".rdata", ".data", "INIT", "KVASCODE"]
    public var sectionOrder = [0, 1, 2, 3, 4, 5]
    public var headerOffset = 0x100
    public var offsets = Offsets()
    public var tableSource = TableSource.dispatcher
    public var hasIsolation = false
    public var viewpoint = Viewpoint.system
    public var usesLargePages = false
    /// Some pages of the image are in transition, or shared through prototype entries.
    public var hasSoftPages = false
    public var stub = StubShape.fast
    public var serviceCount: UInt32 = 0x1d8
    public var numbers: [String: UInt32] = ["SetSystemPowerState": 0x1ab, "Close": 0xf, "QuerySystemInformation": 0x36]
    /// Processes beside System, and whether each has loaded ntdll.
    /// What the power function starts with: bytes that a pattern can know it by, and no other code has.
    public var mark: [UInt8] = [0xb9, 0x5a, 0xa5, 0x3c, 0xc3, 0x81, 0xc1, 0x11, 0x22, 0x33, 0x44]
    public var processes: [(name: String, hasModules: Bool)] = [("smss.exe", true), ("csrss.exe", true)]
    public var damage = Damage.none
    public var decoys: Set<Decoy> = []
    /// Emits KeBugCheckEx and KeBugCheck, which are exported, with whatever they call.
    public var bugChecks: (@Sendable (inout CodeBuilder) -> Void)?
    /// For what is drawn while the code is assembled.
    public var codeSeed: UInt64 = 1

    public struct Offsets: Sendable {
        public var currentThread: UInt32 = 0x188
        public var previousMode: UInt32 = 0x232
        public var attachedProcess: UInt32 = 0xb8
        public var threadProcess: UInt32 = 0x220
        public var threadID: UInt32 = 0x480
        public var uniqueProcessID: UInt32 = 0x440
        public var peb: UInt32 = 0x550
        public var imageFileName: UInt32 = 0x5a8
        public init() {}
    }

    /// How ntdll makes a system call.
    public enum StubShape: CaseIterable, Sendable {
        /// x64: `mov r10, rcx; mov eax, N; syscall`, in either order, and with a test for INT 2Eh.
        case fast, reordered, tested
        /// x86: through SharedUserData, directly (XP RTM), INT 2Eh (2000), a near SYSENTER (8), a function (10), and
        /// the 32-bit ntdll of a 64-bit guest.
        case sharedPointer, sharedCode, interrupt, nearEntry, function, emulated
    }

    public init() {}

    /// Windows 7 SP1 x86, without or with PAE. Offsets: public symbols of build 7601.
    public static func windows7x86(pae: Bool) -> Self {
        var shape = Self()
        shape.architecture = .x86
        shape.mode = pae ? .pae : .legacy32(largePages: true)
        shape.build = 7601
        shape.base = 0x8281_0000
        shape.moduleName = pae ? "ntkrnlpa.exe" : "ntoskrnl.exe"
        shape.offsets.currentThread = 0x124
        shape.offsets.previousMode = 0x13a
        shape.offsets.attachedProcess = 0x50
        shape.offsets.threadProcess = 0x150
        shape.offsets.threadID = 0x230
        shape.offsets.uniqueProcessID = 0xb4
        shape.offsets.peb = 0x1a8
        shape.offsets.imageFileName = 0x16c
        shape.tableSource = .export
        shape.stub = .sharedPointer
        shape.serviceCount = 0x191
        shape.numbers = ["SetSystemPowerState": 0x161, "Close": 0x32, "QuerySystemInformation": 0x105]
        return shape
    }

    /// How discovery may end with a kernel of this shape.
    public var expected: Set<Outcome> {
        let hidesHeader = damage == .headerAbsent || damage == .headerZeroed
        // With small sections an absent page holds other things as well, the header among them.
        let isMixed = (damage != .none || viewpoint == .shadow) && sectionAlignment < 4096
        if decoys.contains(.wrappedSection), isMixed { return [.refused, .retryable] }
        if viewpoint == .shadow { return [.retryable] }
        if decoys.contains(.wrappedSection), !hidesHeader { return [.refused] }
        let hasOtherImage = !decoys.isDisjoint(with: [.foreignImage, .emptyKernel])
        if isMixed, hasOtherImage { return [.found, .retryable, .refused, .disagreement, .ambiguous] }
        switch damage {
        case .none: return whole
        case .powerFunctionAbsent: return isMixed ? whole.union([.retryable]) : whole
        // Another image that holds the handlers is what is seen then.
        case .headerAbsent, .headerZeroed: return hasOtherImage ? [.retryable, .refused] : [.retryable]
        case .exportsAbsent, .noSystemProcess: return [.retryable]
        // The entry that matters may be on the table's other page.
        case .tableAbsent: return whole.union([.retryable])
        // What speaks against the rest of the guest may be seen before what is absent.
        default: return whole.subtracting([.found]).union([.retryable])
        }
    }

    /// How it ends where all that it needs is there.
    private var whole: Set<Outcome> {
        if decoys.contains(.secondKernel) || decoys.contains(.doublePattern) { return [.ambiguous] }
        if decoys.contains(.pattern) || decoys.contains(.patternElsewhere) { return [.found] }
        if decoys.contains(.forgedStub) { return [.disagreement] }
        // Nothing tells the two dispatchers, or the two tables, apart.
        if decoys.contains(.copiedTable), tableSource == .shape || tableSource == .scan { return [.ambiguous] }
        if decoys.contains(.falseDispatcher), tableSource == .scan, architecture == .x64 { return [.ambiguous] }
        return [.found]
    }

    /// Nothing hides anything, and nothing is there twice.
    public var isUndamaged: Bool { expected == [.found] && damage == .none }
}
