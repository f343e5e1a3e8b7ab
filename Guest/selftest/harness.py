"""A guest in a QEMU of its own, its serial line, QMP and gdbstub at hand."""

import json
import os
import re
import socket
import subprocess
import time


class Architecture:
    """What differs between the builds, found by a variant's name."""

    def __init__(self, variant):
        self.is64 = not variant.startswith("x86")
        self.is_pae = variant.startswith("x86-pae")
        self.suffix = "" if self.is64 else "-x86"
        self.build = 19045 if self.is64 else 7601
        self.entry_size = 8 if self.is64 or self.is_pae else 4
        self.forbids_execution = self.is64 or self.is_pae
        self.direct_map = 0xFFFF900000000000 if self.is64 else 0x88000000
        self.call_entry = "KiSystemCall64" if self.is64 else "KiFastCallEntry"
        self.gate_size = 16 if self.is64 else 8
        self.process_id = 0x440 if self.is64 else 0xB4
        self.frame = 0xFFFFFFFFFF000 if self.entry_size == 8 else 0xFFFFF000

    def is_base(self, base):
        if self.is64:
            return base % 0x200000 == 0 and 0xFFFFF80000000000 <= base < 0xFFFFF84000000000
        return base % 0x1000 == 0 and 0x82000000 <= base < 0x84000000

    def entry_at(self, pte_base, address):
        """Where the last level's entry is, in the view of the page tables."""
        return pte_base + ((address >> 12) & (0xFFFFFFFFF if self.is64 else 0xFFFFF)) * self.entry_size

    def tables(self, pte_base):
        size = 1 << 39 if self.is64 else (1 << 20) * self.entry_size
        return range(pte_base, pte_base + size)

    def prototype(self, entry, pool):
        """Where the prototype is that an entry names."""
        if self.is64:
            return (entry >> 16) | 0xFFFF000000000000
        if self.is_pae:
            return entry >> 32
        return pool + ((entry & 0xFE) << 1) + (entry >> 11 << 9)


class Guest:
    """One QEMU with its serial line and QMP on socket pairs."""

    def __init__(self, folder, variant, machine="pc", extra=()):
        serial, serial_end = socket.socketpair()
        qmp, qmp_end = socket.socketpair()
        self.architecture = Architecture(variant)
        suffix = self.architecture.suffix
        images = [f"{folder}/{name}" for name in
                  (f"ntoskrnl-{variant}.exe", f"ntdll{suffix}.dll", f"app{suffix}.exe")]
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg", "-machine", machine, "-m", "128",
             "-display", "none", "-nodefaults",
             "-chardev", f"socket,id=serial,fd={serial_end.fileno()}",
             "-serial", "chardev:serial",
             "-chardev", f"socket,id=qmp,fd={qmp_end.fileno()}",
             "-mon", "chardev=qmp,mode=control",
             "-kernel", f"{folder}/loader", "-initrd", ",".join(images), *extra],
            pass_fds=[serial_end.fileno(), qmp_end.fileno()])
        serial_end.close()
        qmp_end.close()
        self.serial, self.buffer, self.lines = serial, b"", []
        self.qmp = qmp.makefile("rwb")
        self.events = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def line(self, timeout=10.0):
        end = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            self.serial.settimeout(max(0.01, end - time.monotonic()))
            try:
                data = self.serial.recv(4096)
            except TimeoutError:
                raise AssertionError(f"no line within {timeout} s; last {self.lines[-3:]}")
            if not data:
                raise EOFError
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        self.lines.append(line.decode("latin-1"))
        return self.lines[-1]

    def until(self, pattern, timeout=10.0):
        while not re.search(pattern, line := self.line(timeout)):
            pass
        return line

    def boot(self):
        return self.until("^Vigil guest ready", 30)

    def send(self, text):
        self.serial.sendall(text if isinstance(text, bytes) else text.encode())

    def ask(self, command, timeout=10.0):
        """The command's lines, the final one last."""
        self.send(command + "\n")
        answer = [self.line(timeout)]
        while not re.match(r"(#\d+ )?(ok|error)\b", answer[-1]):
            answer.append(self.line(timeout))
        return answer

    def symbols(self):
        return {n: int(v, 16) for n, v in
                (line.split() for line in self.ask("symbols")[:-1])}

    def run(self, command, **arguments):
        if not self.events:
            self.events.append(json.loads(self.qmp.readline()))
            self.run_raw("qmp_capabilities", {})
        return self.run_raw(command, arguments)

    def run_raw(self, command, arguments):
        self.qmp.write(json.dumps({"execute": command, "arguments": arguments}).encode())
        self.qmp.flush()
        while True:
            answer = json.loads(self.qmp.readline())
            if "return" in answer or "error" in answer:
                return answer.get("return", answer)
            self.events.append(answer)

    def monitor(self, line):
        return self.run("human-monitor-command", **{"command-line": line})

    def read_entry(self, at, physical=False):
        """An entry of a page table."""
        unit = "g" if self.architecture.entry_size == 8 else "w"
        return int(self.monitor(f"x{'p' * physical} /1{unit}x 0x{at:x}").split(": ")[1], 16)

    def entry(self, symbols, address):
        return self.read_entry(self.architecture.entry_at(symbols["PteBase"], address))

    def identifier(self, process):
        """UniqueProcessId of an EPROCESS."""
        at = process + self.architecture.process_id
        return int(self.monitor(f"x /1wx 0x{at:x}").split(": ")[1], 16)

    def rights(self):
        """Page address: flags, as `info tlb` prints them."""
        rows = re.findall(r"([0-9a-f]{16}): [0-9a-f]{16} (\S{9})", self.monitor("info tlb"))
        return {int(address, 16): flags for address, flags in rows}


class Stub:
    """The gdbstub of a guest, started for as long as this is open."""

    # Numbers of registers in the stub's x86-64 description.
    RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP = range(8)
    R8, R14, RIP = 8, 14, 16

    def __init__(self, guest):
        self.guest, self.buffer = guest, b""
        self.path = f"/tmp/vigil-selftest-{os.getpid()}"

    def __enter__(self):
        self.guest.monitor(f"gdbserver unix:{self.path},server=on,wait=off")
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(self.path)
        self.socket.settimeout(10)
        self.wait()  # connecting stops the guest
        self.ask("qXfer:features:read:target.xml:0,fff")  # `P` needs it
        return self

    def __exit__(self, *_):
        self.send("D")
        time.sleep(0.05)
        self.socket.close()
        self.guest.monitor("gdbserver none")
        if os.path.exists(self.path):
            os.unlink(self.path)

    def send(self, text):
        self.socket.sendall(f"${text}#{sum(text.encode()) & 255:02x}".encode())

    def wait(self):
        while not (found := re.search(rb"\$([^#]*)#..", self.buffer)):
            self.buffer += self.socket.recv(4096)
        self.buffer = self.buffer[found.end():]
        self.socket.sendall(b"+")
        return found[1].decode("latin-1")

    def ask(self, text):
        self.send(text)
        return self.wait()

    def register(self, number):
        return int.from_bytes(bytes.fromhex(self.ask(f"p{number:x}")), "little")

    def set_register(self, number, value):
        self.ask(f"P{number:x}=" + value.to_bytes(8, "little").hex())

    # All at once with `g` and `G`, but for a guest of 32 bits: QEMU 7.2 takes the
    # registers behind the floating-point ones from other places than it puts them.
    def save(self):
        if self.guest.architecture.is64:
            return self.ask("g")
        return [(number, self.register(number)) for number in (*range(8), self.RIP, self.RIP + 1)]

    def restore(self, saved):
        if self.guest.architecture.is64:
            self.ask("G" + saved)
            return
        for number, value in saved:
            self.set_register(number, value)

    def read(self, address, size):
        return int.from_bytes(bytes.fromhex(self.ask(f"m{address:x},{size:x}")), "little")

    def write(self, address, data):
        self.ask(f"M{address:x},{len(data):x}:{data.hex()}")

    def run_to(self, address, then, meanwhile=lambda: None):
        """Sends the console something, does something else while the guest runs,
        and waits for the address to be reached; no breakpoint stays."""
        self.ask(f"Z1,{address:x},1")
        self.send("c")
        self.guest.send(then)
        meanwhile()
        self.wait()
        self.ask(f"z1,{address:x},1")
        assert self.register(self.RIP) == address
