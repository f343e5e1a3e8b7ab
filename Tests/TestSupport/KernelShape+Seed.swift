import GuestMemory
import WindowsGuest

extension KernelShape {
    /// The shape that belongs to a seed.
    public init(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        self.init()
        let modes: [PagingMode] = [
            .fourLevel, .fourLevel, .fourLevel, .fiveLevel, .pae, .pae, .legacy32(largePages: true),
            .legacy32(largePages: false),
        ]
        mode = modes.randomElement(using: &random)!
        architecture = KernelArchitecture(mode)
        let builds: [UInt32] =
            architecture == .x64
            ? [3790, 6002, 7601, 9200, 9600, 10240, 17763, 19045, 22631, 26100]
            : [2600, 3790, 6002, 7601, 9200, 9600, 10240, 17763, 19045]
        build = builds.randomElement(using: &random)!
        moduleName =
            ["ntoskrnl.exe", "ntoskrnl.exe", "ntkrnlmp.exe", "ntkrnlpa.exe", "ntkrpamp.exe", "NTOSKRNL.EXE"]
            .randomElement(using: &random)!
        drawLayout(&random)
        drawOffsets(&random)
        drawServices(&random)
        drawProcesses(&random)
        drawTrouble(&random)
        codeSeed = random.next()
    }

    private mutating func drawLayout(_ random: inout SeededGenerator) {
        sectionAlignment = [0x1000, 0x1000, 0x1000, 0x20, 0x200].randomElement(using: &random)!
        // Rarely, since all of the image's pages are looked at, and a test pays for each that is absent.
        let isRare = UInt8.random(in: 0..<16, using: &random) == 0
        if isRare { sectionAlignment = 0x20_0000 }
        sectionOrder.shuffle(using: &random)
        switch UInt8.random(in: 0..<4, using: &random) {
        case 0: sectionNames = [String](repeating: "", count: 6)
        case 1:
            let letters = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZ.$_0123456789")
            sectionNames = (0..<6).map { _ in
                String((0..<Int.random(in: 1...8, using: &random)).map { _ in letters.randomElement(using: &random)! })
            }
        default: break
        }
        headerOffset = [0x80, 0xf8, 0x100, 0x110, 0x400].randomElement(using: &random)!
        usesLargePages = UInt8.random(in: 0..<12, using: &random) == 0 && sectionAlignment <= 0x1000
        if case .legacy32(largePages: false) = mode { usesLargePages = false }
        hasSoftPages = !usesLargePages && UInt8.random(in: 0..<4, using: &random) == 0
        // 2 MiB, or 4 MiB.
        let unit: UInt64 = usesLargePages ? 0x40_0000 : 0x1000
        let regions: [Range<UInt64>] =
            switch mode {
            case .fiveLevel:
                [0xff00_0000_0000_0000..<0xfff0_0000_0000_0000, 0xffff_f800_0000_0000..<0xffff_fa00_0000_0000]
            case .fourLevel:
                [0xffff_8000_0000_0000..<0xffff_a000_0000_0000, 0xffff_f800_0000_0000..<0xffff_fa00_0000_0000]
            default: [0x8100_0000..<0x8f00_0000, 0xd000_0000..<0xdf00_0000]
            }
        base = UInt64.random(in: regions.randomElement(using: &random)!, using: &random) & ~(unit - 1)
        // Near the start of a page table, for the same reason.
        if !isRare { base &= ~0x1f_0000 }
    }

    private mutating func drawOffsets(_ random: inout SeededGenerator) {
        let unit = UInt32(architecture.pointerSize)
        func draw(_ range: Range<UInt32>) -> UInt32 { UInt32.random(in: range, using: &random) / unit * unit }
        offsets.currentThread = architecture == .x64 ? 0x188 : 0x124
        offsets.previousMode = UInt32.random(in: 0x100..<0x1f0, using: &random)
        offsets.attachedProcess = draw(0x40..<0x90)
        offsets.threadProcess = draw(0x200..<0x2f0)
        offsets.threadID = draw(0x300..<0x3f0)
        offsets.uniqueProcessID = draw(0x80..<0x1f0)
        offsets.peb = draw(0x210..<0x2f0)
        offsets.imageFileName = UInt32.random(in: 0x300..<0x5f0, using: &random)
    }

    private mutating func drawServices(_ random: inout SeededGenerator) {
        serviceCount = UInt32.random(in: 0xc0...0x1e0, using: &random)
        let pool = ["Close", "QuerySystemInformation", "CreateFile", "OpenProcess", "SetEvent", "ReadFile", "MapView"]
        // Two at least are exported both ways, one of them by a name that is looked for.
        let names = [pool[Int.random(in: 0..<5, using: &random)]] + pool.shuffled(using: &random)
        var chosen: [String] = []
        for name in names where !chosen.contains(name) { chosen.append(name) }
        chosen = Array(chosen.prefix(Int.random(in: 3...7, using: &random))) + ["SetSystemPowerState"]
        var free = Array(0..<serviceCount).shuffled(using: &random)
        numbers = [:]
        for name in chosen { numbers[name] = free.removeLast() }
        let sources: [TableSource] = architecture == .x64 ? [.dispatcher, .scan, .shape] : [.export, .export, .shape]
        tableSource = sources.randomElement(using: &random)!
        let stubs: [StubShape] =
            architecture == .x64
            ? [.fast, .reordered, .tested] : [.sharedPointer, .sharedCode, .interrupt, .nearEntry, .function]
        stub = stubs.randomElement(using: &random)!
        hasIsolation = build >= 7601 && UInt8.random(in: 0..<3, using: &random) == 0
    }

    private mutating func drawProcesses(_ random: inout SeededGenerator) {
        let names = ["smss.exe", "csrss.exe", "wininit.exe", "services.exe", "lsass.exe", "a longer name.x"]
        processes = names.prefix(Int.random(in: 1...6, using: &random)).map { ($0, Bool.random(using: &random)) }
        let last = processes.count - 1
        processes[last].hasModules = true
        // The 64-bit list of a 32-bit process names its 32-bit ntdll only in a guest that was tampered with; the stub
        // says the same number.
        if architecture == .x64, UInt8.random(in: 0..<8, using: &random) == 0 { stub = .emulated }
    }

    private mutating func drawTrouble(_ random: inout SeededGenerator) {
        viewpoint = Bool.random(using: &random) ? .system : .otherProcess
        if hasIsolation, UInt8.random(in: 0..<4, using: &random) == 0 {
            viewpoint = Bool.random(using: &random) ? .shadow : .shadowAndKernel
        }
        if UInt8.random(in: 0..<4, using: &random) == 0 {
            damage = Damage.allCases.randomElement(using: &random)!
            // Large pages are never paged out.
            if usesLargePages, damage != .noNtdll, damage != .noSystemProcess, damage != .headerZeroed {
                damage = .none
            }
        }
        for _ in 0..<Int.random(in: 0...3, using: &random) {
            decoys.insert(Decoy.allCases.randomElement(using: &random)!)
        }
        // What the two do to one process's ntdll needs another that is as it should be.
        if decoys.contains(.hookedStub) || decoys.contains(.forgedStub) {
            decoys.remove(decoys.contains(.hookedStub) ? .forgedStub : .hookedStub)
            while processes.count(where: \.hasModules) < 2 { processes.append(("extra.exe", true)) }
        }
        let patterns: [Decoy] = [.doublePattern, .patternElsewhere, .pattern]
        if let first = patterns.first(where: { decoys.contains($0) }) {
            decoys.subtract(patterns)
            decoys.insert(first)
        }
        // Of so few stubs as many would lead elsewhere as where they should.
        if decoys.contains(.hookedKernelStub) { decoys.remove(.falseStub) }
        // Nothing would tell a damaged kernel's double from it.
        if damage != .none || decoys.contains(.wrappedSection) { decoys.remove(.secondKernel) }
        // Where code is absent, what a pattern says of it is not known.
        if damage != .none { decoys.subtract(patterns) }
    }
}
