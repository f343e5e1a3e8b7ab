import BundledGuest
import Foundation
import HostProcesses
import Testing

/// A machine in long mode whose interrupts lead nowhere near an NT kernel.
final class ForeignGuest {
    let process: DependentProcess
    let socket: String
    var target: String { "qemu:\(socket)" }
    private let image: URL

    init() throws {
        let name = "/tmp/vigil-foreign-\(UInt32.random(in: .min ... .max))"
        socket = name + ".qmp"
        image = URL(fileURLWithPath: name + ".img")
        try Data(Self.bootSector).write(to: image)
        let qemu = try #require(BundledGuestMachine.find("qemu-system-x86_64"))
        process = try DependentProcess(
            path: qemu,
            arguments: [
                "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "32", "-drive",
                "file=\(image.path),format=raw,if=floppy", "-qmp", "unix:\(socket),server=on,wait=off",
            ], output: 2, errors: 2)
        while access(socket, F_OK) != 0, process.isRunning { usleep(2000) }
    }

    deinit {
        process.kill()
        try? FileManager.default.removeItem(at: image)
        unlink(socket)
    }

    /// A boot sector that enters long mode with page tables at 0x1000, and an interrupt table at 0x5000 whose
    /// gates all lead to a `hlt` loop in the upper half, and stays there.
    private static let bootSector: [UInt8] = {
        var code: [UInt8] = []
        func emit(_ bytes: UInt8...) { code += bytes }
        func emit32(_ value: UInt32) { withUnsafeBytes(of: value.littleEndian) { code += $0 } }
        func emit16(_ value: UInt16) { withUnsafeBytes(of: value.littleEndian) { code += $0 } }
        emit(0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c)  // cli; ds=es=ss=0; sp=7c00
        emit(0xbf, 0x00, 0x10, 0xb9, 0x00, 0x30, 0xfc, 0xf3, 0xab)  // di=1000; cx=3000; rep stosw: zero 1000-6fff
        // PML4[0] = 2003, PDPT[0] = 3003, PD[0] = 83 (2 MiB)
        emit(0xc7, 0x06, 0x00, 0x10, 0x03, 0x20, 0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0xc7, 0x06, 0x00, 0x30, 0x83, 0x00)
        // PML4[511] = 2003, PDPT[510] = 3003: the same at ffffffff80000000
        emit(0xc7, 0x06, 0xf8, 0x1f, 0x03, 0x20, 0xc7, 0x06, 0xf0, 0x2f, 0x03, 0x30)
        // 256 gates at 5000: offset ffffffff80007d00, selector 8, present interrupt gate
        emit(0xbf, 0x00, 0x50, 0xb9, 0x00, 0x01)  // di=5000; cx=256
        let loop = code.count
        emit(0xc7, 0x05, 0x00, 0x7d, 0xc7, 0x45, 0x02, 0x08, 0x00, 0xc7, 0x45, 0x04, 0x00, 0x8e)
        emit(0xc7, 0x45, 0x06, 0x00, 0x80, 0xc7, 0x45, 0x08, 0xff, 0xff, 0xc7, 0x45, 0x0a, 0xff, 0xff)
        emit(0x83, 0xc7, 0x10)
        emit(0xe2, UInt8(bitPattern: Int8(loop - (code.count + 2))))  // add di,16; loop
        emit(0x0f, 0x01, 0x16)  // lgdt [7de0]
        emit16(0x7de0)
        emit(0x0f, 0x01, 0x1e)  // lidt [7de6]
        emit16(0x7de6)
        emit(0x66, 0xb8)  // mov eax, CR4.PAE
        emit32(0x20)
        emit(0x0f, 0x22, 0xe0)
        emit(0x66, 0xb8)  // mov eax, 1000; mov cr3, eax
        emit32(0x1000)
        emit(0x0f, 0x22, 0xd8)
        emit(0x66, 0xb9)  // ecx = EFER; rdmsr; or ah, LME; wrmsr
        emit32(0xc000_0080)
        emit(0x0f, 0x32, 0x80, 0xcc, 0x01, 0x0f, 0x30)
        emit(0x66, 0xb8)  // mov eax, PG|PE; mov cr0, eax
        emit32(0x8000_0001)
        emit(0x0f, 0x22, 0xc0)
        emit(0xea, 0x00, 0x7d, 0x08, 0x00)  // jmp 8:7d00
        code += [UInt8](repeating: 0, count: 0x100 - code.count)
        emit(0xfa, 0xf4, 0xeb, 0xfc)  // 7d00: cli; hlt; jmp back
        code += [UInt8](repeating: 0, count: 0x1d0 - code.count)
        // 7dd0: the GDT, null and 64-bit code
        code += [0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0x9a, 0xaf, 0]
        emit16(15)  // 7de0: its limit and base
        emit32(0x7dd0)
        emit16(4095)  // 7de6: the interrupt table's
        emit32(0x5000)
        code += [UInt8](repeating: 0, count: 510 - code.count)
        emit(0x55, 0xaa)
        return code
    }()
}
