"""A guest in a QEMU of its own, its serial line, QMP and gdbstub at hand."""

import json
import os
import re
import socket
import subprocess
import time


class Guest:
    """One QEMU with its serial line and QMP on socket pairs."""

    def __init__(self, folder, variant, machine="pc", extra=()):
        serial, serial_end = socket.socketpair()
        qmp, qmp_end = socket.socketpair()
        images = [f"{folder}/{name}" for name in
                  (f"ntoskrnl-{variant}.exe", "ntdll.dll", "app.exe")]
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
