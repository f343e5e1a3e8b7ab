import GuestMemory
import HypervisorInterface
import Testing
import X86

@testable import QEMUHypervisor

/// What QEMU 7.2's monitor prints.
enum MonitorSamples {
    /// One vCPU's part of `info registers -a`, in long mode.
    static func longMode(_ number: Int, cr3: String = "00000000001ad002") -> String {
        """
        CPU#\(number)
        RAX=0000000000000000 RBX=fffff8064a200000 RCX=0000000000000005 RDX=0000000000000006
        RSI=0000000000000000 RDI=0000000000000000 RBP=ffffb80000028f80 RSP=ffffb80000028f08
        R8 =00000000c0000004 R9 =0000000000000000 R10=0000000000000000 R11=0000000000000246
        R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=0000000000000000
        RIP=fffff8064a204000 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
        ES =002b 0000000000000000 ffffffff 00cff300 DPL=3 DS   [-WA]
        CS =0010 0000000000000000 00000000 00209b00 DPL=0 CS64 [-RA]
        SS =0018 0000000000000000 00000000 00409300 DPL=0 DS   [-WA]
        DS =002b 0000000000000000 ffffffff 00cff300 DPL=3 DS   [-WA]
        FS =0053 0000000000000000 00003c00 0040f300 DPL=3 DS   [-WA]
        GS =002b fffff80649010000 ffffffff 00cff300 DPL=3 DS   [-WA]
        LDT=0000 0000000000000000 00000000 00000000
        TR =0040 fffff80649012000 00000067 00008b00 DPL=0 TSS64-busy
        GDT=     fffff80649013000 00000057
        IDT=     fffff80649000000 00000fff
        CR0=80050033 CR2=0000000000401000 CR3=\(cr3) CR4=003506f8
        DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000\u{20}
        DR6=00000000ffff0ff0 DR7=0000000000000400
        CCS=0000000000000004 CCD=ffffb80000028f08 CCO=ADDQ
        EFER=0000000000000d01
        FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
        FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
        XMM00=0000000000000000 0000000000000000 XMM01=0000000000000000 0000000000000000
        """
    }

    /// A vCPU that its firmware has not left yet.
    static let realMode = """
        CPU#0
        EAX=00000000 EBX=00000000 ECX=00000000 EDX=00060fb1
        ESI=00000000 EDI=00000000 EBP=00000000 ESP=00000000
        EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
        ES =0000 00000000 0000ffff 00009300
        CS =f000 ffff0000 0000ffff 00009b00
        LDT=0000 00000000 0000ffff 00008200
        TR =0000 00000000 0000ffff 00008b00
        GDT=     00000000 0000ffff
        IDT=     00000000 0000ffff
        CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
        EFER=0000000000000000
        """

    /// `info mtree -f` of a pc with two vCPUs, as it was started.
    static let memoryTree = """
        FlatView #0
         AS "cpu-smm-1", root: memory
         Root memory region: memory
          0000000000000000-000000000009ffff (prio 0, ram): pc.ram
          00000000000a0000-00000000000bffff (prio 0, ram): smram

        FlatView #1
         AS "memory", root: system
         AS "cpu-memory-0", root: system
         AS "cpu-memory-1", root: system
         Root memory region: system
          0000000000000000-000000000009ffff (prio 0, ram): pc.ram
          00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
          00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
          00000000000e0000-00000000000fffff (prio 0, rom): pc.bios @0000000000020000
          0000000000100000-0000000007ffffff (prio 0, ram): pc.ram @0000000000100000
          00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
          00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi
          00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios

        FlatView #2
         AS "I/O", root: io
         Root memory region: io
          0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

        FlatView #3
         AS "PIIX3", root: bus master container
         Root memory region: (none)
          No rendered FlatView

        """

    /// The view of a q35 whose RAM is a backend called `m`, after its firmware.
    static let afterFirmware = """
        FlatView #0
         AS "memory", root: system
         Root memory region: system
          0000000000000000-000000000009ffff (prio 0, ram): m
          00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
          00000000000c0000-00000000000cafff (prio 0, rom): m @00000000000c0000
          00000000000cb000-00000000000cdfff (prio 0, ram): m @00000000000cb000
          00000000000ce000-00000000000e7fff (prio 0, rom): m @00000000000ce000
          00000000000e8000-00000000000effff (prio 0, ram): m @00000000000e8000
          00000000000f0000-00000000000fffff (prio 0, rom): m @00000000000f0000
          0000000000100000-0000000007ffffff (prio 0, ram): m @0000000000100000
          00000000b0000000-00000000bfffffff (prio 0, i/o): pcie-mmcfg-mmio
        """
}

@Suite("The monitor's text") struct MonitorTextTests {
    @Test("Each vCPU's control registers and table registers are read, in order", arguments: [1, 2])
    func registers(count: Int) {
        let parts = (0..<count).map { MonitorSamples.longMode($0, cr3: "00000000001ad00\($0)") }
        let tables = MonitorText.processorTables(parts.map { "\r\n" + $0 }.joined(separator: "\r\n"))
        #expect(tables.count == count)
        for (index, entry) in tables.enumerated() {
            #expect(
                entry
                    == ProcessorTables(
                        control: ControlRegisters(
                            cr0: 0x8005_0033, cr3: 0x1ad000 + UInt64(index), cr4: 0x0035_06f8, efer: 0xd01),
                        idtBase: GuestVirtualAddress(0xffff_f806_4900_0000), idtLimit: 0xfff,
                        gdtBase: GuestVirtualAddress(0xffff_f806_4901_3000), gdtLimit: 0x57))
        }
    }

    @Test("A vCPU in its firmware is read too: paging is off")
    func realMode() throws {
        let tables = MonitorText.processorTables(MonitorSamples.realMode + "\n\n" + MonitorSamples.longMode(1))
        try #require(tables.count == 2)
        #expect(!tables[0].control.pagingEnabled && tables[0].idtLimit == 0xffff)
        #expect(tables[1].control.longModeActive)
    }

    @Test("A vCPU whose part lacks something is left out, and the others are not")
    func incomplete() {
        let whole = MonitorSamples.longMode(1)
        for missing in ["GDT=", "IDT=", "CR0=", "EFER="] {
            let part = MonitorSamples.longMode(0).split(separator: "\n").filter { !$0.hasPrefix(missing) }
            #expect(MonitorText.processorTables(part.joined(separator: "\n") + "\n" + whole).count == 1)
        }
        #expect(MonitorText.processorTables("").isEmpty)
        #expect(MonitorText.processorTables("unknown command: 'info'").isEmpty)
    }

    @Test("RAM is what the view of the whole memory shows as such")
    func ranges() {
        let ranges = MonitorText.ramRanges(MonitorSamples.memoryTree)
        #expect(ranges.map(\.base) == [0, 0x10_0000] && ranges.map(\.length) == [0xa0000, 0x7f0_0000])
        #expect(ranges.allSatisfy { $0.name == "pc.ram" })
    }

    @Test("RAM that the chipset shows read-only is RAM; lines may end as a terminal's do")
    func shadow() {
        for separator in ["\n", "\r\n"] {
            let text = MonitorSamples.afterFirmware.split(separator: "\n").joined(separator: separator)
            let ranges = MonitorText.ramRanges(text)
            #expect(ranges.count == 7 && ranges.reduce(0) { $0 + $1.length } == 128 << 20 - 0x20000 as UInt64)
            #expect(ranges.allSatisfy { $0.name == "m" })
        }
    }

    @Test("A graphics card's memory, which lies in a PCI window, is not the guest's RAM")
    func graphicsMemory() {
        let card = "\n  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram"
        #expect(MonitorText.ramRanges(MonitorSamples.afterFirmware + card).map(\.name).contains("vga.vram") == false)
    }

    @Test(
        "No view of memory, or nonsense in one, is no RAM",
        arguments: [
            "", "No rendered FlatView", "(prio 0, ram): pc.ram", "zz-ff (prio 0, ram): x", "10-0 (prio 0, ram): x",
            "0-ffffffffffffffff (prio 0, ram): x", "0-ff )prio 0, ram(: x", "0-ff (prio 0, ram):",
            "0-ff (prio 0, i/o): x",
            "0-ff", "0-1-2 (prio 0, ram): x",
        ])
    func noRAM(line: String) {
        #expect(MonitorText.ramRanges("FlatView #0\n AS \"memory\", root: system\n  \(line)\n").isEmpty)
        #expect(MonitorText.ramRanges("FlatView #0\n AS \"I/O\", root: io\n  0-ff (prio 0, ram): x\n").isEmpty)
    }

    @Test("A host address is what the monitor says one to be")
    func hostAddress() {
        #expect(
            MonitorText.hostAddress("Host virtual address for 0x1000 (pc.ram) is 0x7ff43be01000\r\n")
                == 0x7ff4_3be0_1000)
        #expect(MonitorText.hostAddress("Memory at address 0xfee00000 is not RAM\r\n") == nil)
        #expect(MonitorText.hostAddress("") == nil)
    }

    @Test("An address that the monitor says nothing is mapped at is no host address")
    func unmapped() {
        #expect(MonitorText.hostAddress("No memory is mapped at address 0x200000000\r\n") == nil)
    }

    @Test("Dumped words become bytes in memory's order")
    func dump() {
        let text = "00000000000ffff0: 0x2f3630f000e05bea 0x00fc0039392f3332\r\n0000000000100000: 0x0000000000000001\r\n"
        #expect(
            MonitorText.dumpedBytes(text) == [
                0xea, 0x5b, 0xe0, 0x00, 0xf0, 0x30, 0x36, 0x2f, 0x32, 0x33, 0x2f, 0x39, 0x39, 0x00, 0xfc, 0x00,
                1, 0, 0, 0, 0, 0, 0, 0,
            ])
        #expect(MonitorText.dumpedBytes("0000000200000000: Cannot access memory\r\n").isEmpty)
    }

    /// What QEMU 7.2 prints of a q35: its ports before and after it was woken, and its devices.
    private static func ports(_ lines: String...) -> String {
        let memory = "FlatView #0\r\n AS \"memory\", root: system\r\n  0-ff (prio 0, i/o): acpi-cnt\r\n\r\n"
        let ports = lines.map { "  \($0)\r\n" }.joined()
        return memory + "FlatView #1\r\n AS \"I/O\", root: io\r\n Root memory region: io\r\n\(ports)\r\n"
            + "FlatView #2\r\n AS \"mch\", root: bus master container\r\n  0-ff (prio 0, i/o): acpi-cnt\r\n"
    }

    @Test("A register is at its port when the view of the ports says so, and no other")
    func ports() {
        let event = "0000000000000600-0000000000000603 (prio 0, i/o): acpi-evt"
        let control = "0000000000000604-0000000000000605 (prio 0, i/o): acpi-cnt"
        let cut = "0000000000000604-0000000000000604 (prio 0, i/o): acpi-cnt @0000000000000001"
        #expect(MonitorText.isPort("acpi-cnt", inTree: Self.ports(event, control)))
        #expect(MonitorText.isPort("acpi-cnt", inTree: Self.ports(event, cut)))
        #expect(!MonitorText.isPort("acpi-cnt", inTree: Self.ports(event)))
        #expect(!MonitorText.isPort("acpi-cnt", inTree: Self.ports("0-ff (prio 0, i/o):", "acpi-cnt", "0-ff")))
        #expect(!MonitorText.isPort("acpi-cnt", inTree: ""))
    }

    @Test("A device has a register whether it is at its port or not")
    func regions() {
        let objects = """
            /machine (pc-q35-7.2-machine)\r
                /device[2] (ICH9-LPC)\r
                  /acpi-cnt[0] (memory-region)\r
                  /acpi-cnt-like (string)\r
            """
        #expect(MonitorText.isRegion("acpi-cnt", ofObjects: objects))
        #expect(!MonitorText.isRegion("acpi", ofObjects: objects))
        #expect(!MonitorText.isRegion("acpi-evt", ofObjects: objects))
        #expect(!MonitorText.isRegion("acpi-cnt", ofObjects: "unknown command: 'info qom-tree'"))
    }
}
