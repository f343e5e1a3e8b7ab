#!/usr/bin/env python3
"""Boots every variant of the bundled guest and holds it to README.md, without
Vigil. For development: needs Python 3 and QEMU; the shipped tests do not use it.

    selftest.py FOLDER-WITH-ARTIFACTS [VARIANT ...]
"""

import os
import re
import subprocess
import sys
import time

sys.dont_write_bytecode = True  # nothing is left beside the sources
import hibernation_rules
import machine_rules
from harness import Guest, Stub

VARIANTS = [f"{a}{o}-{r}" for a in ("", "x86-pae-", "x86-") for o in ("O0", "O2", "Os") for r in ("direct", "deep")]


class Results:
    def __init__(self):
        self.failures = 0

    def check(self, rule, condition, detail=""):
        if not condition:
            self.failures += 1
        print(f"  {'pass' if condition else 'FAIL'}  {rule}"
              + (f"   ({detail})" if detail and not condition else ""), flush=True)


def sections(folder, variant):
    data = open(f"{folder}/ntoskrnl-{variant}.exe", "rb").read()
    header = int.from_bytes(data[0x3C:0x40], "little")
    table = header + 24 + int.from_bytes(data[header + 20:header + 22], "little")
    for index in range(int.from_bytes(data[header + 6:header + 8], "little")):
        row = data[table + index * 40:table + index * 40 + 40]
        number = lambda at: int.from_bytes(row[at:at + 4], "little")
        yield row[:8].rstrip(b"\0").decode(), number(12), number(8), number(36)


def console_rules(guest, results):
    check = results.check
    check("ping", guest.ask("ping") == ["ok pong"])
    check("a tag is echoed", guest.ask("#7 ping") == ["#7 ok pong"])
    check("unknown commands", guest.ask("frobnicate 1 2") == ["error unknown command"])
    check("a tag alone", guest.ask("#9") == ["#9 error unknown command"])
    check("too few words", guest.ask("power kernel 5")[0].startswith("error usage"))
    check("not a number", guest.ask("power kernel five 1 0")[0].startswith("error not a number"))
    check("nobody", guest.ask("power me 5 1 0")[0].startswith("error nobody"))
    check("too many words", guest.ask("a b c d e f g h i j") == ["error unknown command"])
    guest.send(b"x" * 2000 + b"\n")
    check("a long line", guest.line() == "error line too long")
    guest.send(bytes(range(128, 256)) + b"\x01\x02\n")
    check("bytes that are no text", guest.line() == "error unknown command")
    guest.send("\n\r\n  \n")
    check("empty lines have no answer", guest.ask("ping") == ["ok pong"])
    check("help", len(guest.ask("help")) > 10)
    threads = guest.ask("threads")
    check("three processes", [re.search(r"name=(\S+)", l)[1] for l in threads
                              if l.startswith("  process")] == ["System", "smss.exe", "app.exe"])


def power_rules(guest, results):
    check = results.check
    ask = lambda text: guest.ask(text)[-1]
    entries = [0]

    def counts(added, rule):
        entries[0] += added
        answer = ask("counts")
        check(f"entries and returns: {rule}",
              answer == f"ok entries={entries[0]} returns={entries[0]}", answer)

    counts(0, "none at first")
    for who, added in (("kernel", 1), ("kernel-direct", 1), ("user", 2)):
        check(f"success from {who}", ask(f"power {who} 7 4 0") == "ok status=0x00000000")
        counts(added, who)
    if not guest.architecture.is64:
        check("by int 2Eh", ask("power user-interrupt 7 4 0") == "ok status=0x00000000")
        counts(2, "by int 2Eh")
    for who in ("user", "unprivileged", "kernel", "kernel-direct"):
        bad = [(0, 4, 0), (8, 4, 0), (5, 0, 0), (5, 7, 0), (5, 6, 0x40),
               (0xFFFFFFFF, 4, 0), (5, 0x80000000, 0)]
        answers = [ask(f"power {who} {a} {s} {f}") for a, s, f in bad]
        check(f"bad arguments from {who}", set(answers) == {"ok status=0xc000000d"}, answers)
        counts(len(bad), "bad arguments, one entry each")
    check("no privilege", ask("power unprivileged 5 6 0") == "ok status=0xc0000061")
    counts(1, "no privilege")
    check("no such sleep", ask("power kernel 2 6 0") == "ok status=0xc00000bb")
    counts(1, "sleep")
    check("a driver refuses", ask("refuse on") == "ok refusing status=0xc00002d3")
    check("refused: reset", ask("power user 5 6 0xC0000004") == "ok status=0xc00002d3")
    check("refused: off", ask("power kernel 6 6 0") == "ok status=0xc00002d3")
    check("another status", ask("refuse on 0xC0000001") == "ok refusing status=0xc0000001")
    check("refused with it", ask("power kernel-direct 5 6 0") == "ok status=0xc0000001")
    check("no success as refusal", ask("refuse on 0").startswith("error"))
    check("agreeing again", ask("refuse off") == "ok agreeing")
    counts(4, "refused")

    for tag in range(1, 13):
        who = ("kernel", "user", "kernel-direct")[tag % 3]
        guest.send(f"#{tag} power {who} 7 4 0\n")
    guest.send("#99 ping\n")
    answers = sorted(guest.line() for _ in range(13))
    check("twelve callers at once", answers == sorted(
        [f"#{tag} ok status=0x00000000" for tag in range(1, 13)] + ["#99 ok pong"]), answers)
    counts(16, "twelve callers")
    for tag in range(100):
        guest.send(f"#{tag} power kernel 7 4 0\n")
    answers = [guest.line() for _ in range(100)]
    good = sum(a.endswith("ok status=0x00000000") for a in answers)
    full = sum("too many" in a for a in answers)
    check("a flood is bounded, each line answered", good + full == 100 and good >= 32)
    counts(good, "the flood")


def thread_rules(guest, results):
    def clock():
        found = re.search(r"interrupt-time=(\d+) .*system-calls=(\d+)", guest.ask("time")[-1])
        return int(found[1]) / 1e7, int(found[2])

    check = results.check
    wall, (start, calls) = time.monotonic(), clock()
    time.sleep(0.5)
    ran = clock()[0] - start
    elapsed = time.monotonic() - wall
    check("interrupt time runs with the world's", 0.7 * elapsed < ran < 1.3 * elapsed,
          f"{ran:.3f} of {elapsed:.3f} s")
    check("work", guest.ask("work 20000") == ["ok calls=20000"])
    check("busy", guest.ask("busy on") == ["ok busy=on"])
    before = clock()[1]
    asked = time.monotonic()
    guest.ask("ping")
    check("a busy ring 3 does not starve the console", time.monotonic() - asked < 0.5)
    time.sleep(0.1)
    check("and makes progress", clock()[1] > before + 1000)
    check("work beside it", guest.ask("work 20000") == ["ok calls=20000"])
    check("power beside it", guest.ask("power user 7 4 0") == ["ok status=0x00000000"])
    guest.ask("busy off")
    time.sleep(0.05)
    before = clock()[1]
    time.sleep(0.1)
    check("idle again", clock()[1] == before)


def memory_rules(guest, results, folder, variant):
    check = results.check
    symbols = guest.symbols()
    base = symbols["ImageBase"]
    architecture = guest.architecture
    check("the base is where Windows' is", architecture.is_base(base))
    guest.ask("check")  # reads, and so brings in, what is pageable
    rights = guest.rights()
    wrong = []
    for name, at, size, flags in sections(folder, variant):
        forbidden = architecture.forbids_execution and not flags & 0x20000000
        expected = None if flags & 0x02000000 else (
            "X" if forbidden else "-", "W" if flags & 0x80000000 else "-")
        for page in range(base + at, base + at + size, 4096):
            found = rights.get(page)
            if (found and (found[0], found[8])) != expected:
                wrong.append((name, hex(page), found))
    check("each page has its section's rights, INIT is gone", not wrong, wrong[:3])
    # QEMU prints the last level's flags; below the self-map entry these are the
    # tables' own, and it is the NX of the entry itself that counts.
    self_map = architecture.tables(symbols["PteBase"])
    loose = [hex(p) for p, f in rights.items() if f[0] == "-" and f[8] == "W" and p not in self_map
             and architecture.forbids_execution]
    check("nothing is writable and executable", not loose, loose[:3])
    moved = [re.match(r"ok page=(\S+) old=(\S+) new=(\S+)", guest.ask(f"move {name}")[-1])
             for name in ("MmMapPage", "KiServiceTable", "NtSetSystemPowerState", "MmMapPage")]
    check("pages of code and constants move", all(moved) and moved[0][3] == moved[3][2]
          and all(m[2] != m[3] for m in moved), moved)
    check("pages of data do not", guest.ask("move PsActiveProcessHead")[-1].startswith("error not a page of"))
    check("what was moved is as it was", guest.ask("check")[0].startswith("ok clean")
          and guest.ask("work 1000") == ["ok calls=1000"])
    remapped = guest.ask("remap 100000")[-1]
    check("remap", re.fullmatch(r"ok rounds=100000 time=[1-9]\d*", remapped), remapped)
    image = range(symbols["ImagePhysicalBase"], symbols["ImagePhysicalBase"] + 0x200000)
    alias = [hex(p) for p in rights if p - architecture.direct_map in image]
    check("the image has no other mapping", not alias, alias[:3])
    check("the kernel's code is clean", guest.ask("check")[0].startswith("ok clean"))
    text = next(s for s in sections(folder, variant) if s[0] == ".text")
    slack = base + text[1] + text[2]
    rest = -slack % 4096
    zeroes = "".join(re.findall(r": (.*)", guest.monitor(f"x /{rest}bx 0x{slack:x}"))).split()
    check("1 KiB of zeroes after .text", rest >= 1024 and set(zeroes) == {"0x00"}, rest)
    with Stub(guest) as stub:
        stub.write(slack + rest - 1, b"\x90")
    answer = guest.ask("check")[0]
    check("a byte written there is seen",
          answer == f"error modified section=.text offset=0x{slack + rest - 1 - base - text[1]:x}",
          answer)
    with Stub(guest) as stub:
        stub.write(slack + rest - 1, b"\0")
    check("and put back is not", guest.ask("check")[0].startswith("ok clean"))


def transition_rules(results, folder, variant, machine):
    check = results.check
    for who, action, line in (("kernel", 5, "! reset"), ("user", 5, "! reset"),
                              ("kernel-direct", 6, "! power-off"), ("user", 4, "! power-off")):
        with Guest(folder, variant, machine, ["-no-reboot"]) as guest:
            guest.boot()
            guest.send(f"power {who} {action} 6 0\n")
            try:
                said = guest.line().startswith(line)
                status = guest.process.wait(10)
            except (EOFError, subprocess.TimeoutExpired, AssertionError) as problem:
                said, status = False, problem
            check(f"{machine}: action {action} from {who} takes the machine down",
                  said and status == 0, status)
    with Guest(folder, variant, machine) as guest:
        guest.boot()
        bases = [guest.symbols()["ImageBase"]]
        for _ in range(2):
            guest.send("power user 5 6 0\n")
            guest.boot()
            bases.append(guest.symbols()["ImageBase"])
        check(f"{machine}: a reset boots again, elsewhere", len(set(bases)) == 3, bases)
        guest.send("crash\n")
        stop = guest.until(r"^\*\*\* STOP")
        check(f"{machine}: a bug check says so",
              stop.startswith("*** STOP: 0x000000e2") and guest.line() == "bugcheck 0x000000e2")


def caller_rules(guest, results):
    """What a debugger does to a caller, or does not."""
    check = results.check
    symbols = guest.symbols()
    function, delay = symbols["NtSetSystemPowerState"], symbols["KeDelayExecutionThread"]

    is64 = guest.architecture.is64
    width = 8 if is64 else 4
    with Stub(guest) as stub:
        stub.run_to(function, "power kernel-direct 7 4 0\n")
        stub.set_register(Stub.RBX, 1)
        stub.set_register(Stub.R14 if is64 else Stub.RSI, 2)
    check("registers that come back changed are told",
          guest.line() == f"error registers mask=0x{0x41 if is64 else 5:x}")

    with Stub(guest) as stub:
        stub.run_to(function, "power user 7 4 0\n")
        stack = stub.register(Stub.RSP)
        if is64:
            check("upper halves of the arguments are undefined",
                  stub.register(Stub.RCX) == 0xBADC0DE500000007
                  and stub.register(Stub.R8) == 0xBADC0DE500000000)
        else:
            check("the arguments are on the stack",
                  [stub.read(stack + at, 4) for at in (4, 8, 12)] == [7, 4, 0])
        # Held by the guest's own means: the thread sleeps, its return address
        # the function's entry, where it stands again with all put back.
        saved = stub.save()
        interval, frame = stack - 0x100, (stack - 0x200) // 16 * 16 - 8
        for milliseconds, line in ((5, ""), (5, ""), (5, ""), (2000, "#5 ping\n")):
            stub.write(interval, (-10000 * milliseconds).to_bytes(8, "little", signed=True))
            arguments = [] if is64 else [0, 0, interval]
            stub.write(frame, b"".join(v.to_bytes(width, "little") for v in [function, *arguments]))
            registers = [(Stub.RCX, 0), (Stub.RDX, 0), (Stub.R8, interval)] if is64 else []
            for register, value in [(Stub.RSP, frame), *registers, (Stub.RIP, delay)]:
                stub.set_register(register, value)
            stub.run_to(function, line, lambda: line and check(
                "the console answers while a caller sleeps", guest.line() == "#5 ok pong"))
        stub.restore(saved)
    check("a caller held asleep goes on unharmed", guest.line() == "ok status=0x00000000")

    # Where ring 3 goes on: RCX; on x86 always in ntdll, which returns by its stack, EDX.
    entry, back = symbols[guest.architecture.call_entry], Stub.RCX if is64 else Stub.RDX
    with Stub(guest) as stub:
        stub.run_to(entry, "#6 work 5\n")
        stub.set_register(back, 0x10)
    check("a fault in ring 3 is said", guest.line().startswith("! exception vector=14"))
    check("and its command answered", guest.line() == "#6 error the thread ended")
    with Stub(guest) as stub:
        stub.run_to(entry, "work 5\n")
        stub.set_register(Stub.RAX, 0x19 if is64 else 0xEA)  # five arguments, and no stack
        stub.set_register(Stub.RSP if is64 else Stub.RDX, 0x5000)
    check("no stack for a service's arguments is the program's fault",
          guest.line().endswith("address=0x5000") and guest.line() == "error the thread ended")
    check("others go on", guest.ask("work 5") == ["ok calls=5"])


def fault_rules(results, folder, variant):
    """Faults of the kernel's own, each the end of a guest."""
    def crash(rule, register, value, code):
        with Guest(folder, variant, extra=["-device", "pvpanic", "-action", "panic=none"]) as guest:
            guest.boot()
            function = guest.symbols()["NtSetSystemPowerState"]
            with Stub(guest) as stub:
                stub.run_to(function, "power kernel 7 4 0\n")
                stub.set_register(register, value)
            results.check(rule, guest.until(r"^\*\*\* STOP").startswith(f"*** STOP: 0x{code:08x}"))
            guest.until("^bugcheck")
            guest.monitor("info status")
            results.check("QEMU is told", "GUEST_PANICKED" in [e.get("event") for e in guest.events])

    crash("a wild jump is a bug check", Stub.RIP, 0x1234, 0x50)
    crash("no stack is a double fault", Stub.RSP, 0x1230, 0x7F)


def main():
    folder = os.path.abspath(sys.argv[1])
    results = Results()
    started = time.monotonic()
    for variant in sys.argv[2:] or VARIANTS:
        print(variant)
        with Guest(folder, variant) as guest:
            banner = guest.boot()
            results.check("banner", banner == f"Vigil guest ready variant={variant} build={guest.architecture.build}",
                          banner)
            console_rules(guest, results)
            power_rules(guest, results)
            thread_rules(guest, results)
            memory_rules(guest, results, folder, variant)
            caller_rules(guest, results)
        fault_rules(results, folder, variant)
        for machine in ("pc", "q35"):
            transition_rules(results, folder, variant, machine)
            machine_rules.processor_rules(results, folder, variant, machine)
        machine_rules.paging_rules(results, folder, variant)
        machine_rules.crash_rules(results, folder, variant)
        machine_rules.guard_rules(results, folder, variant)
        machine_rules.resume_guard_rules(results, folder, variant)
        machine_rules.sleep_rules(results, folder, variant, "pc")
        machine_rules.second_sleep_on_q35(results, folder, variant)
        hibernation_rules.hibernation_rules(results, folder, variant)
    print(f"{results.failures} failures, {time.monotonic() - started:.0f} s")
    sys.exit(1 if results.failures else 0)


if __name__ == "__main__":
    main()
