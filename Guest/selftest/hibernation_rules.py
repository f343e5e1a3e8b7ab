"""Rules of hibernation and of hybrid sleep: machine pc, a disk, several QEMUs."""

import os
import tempfile
import time

from harness import Guest
from machine_rules import fields

DISK_SIZE = 64 << 20


def disk_arguments(path, count):
    return ["-smp", str(count), "-drive", f"file={path},format=raw,if=ide"]


def wait_for_suspension(guest):
    end = time.monotonic() + 30
    while "suspended" not in guest.monitor("info status") and time.monotonic() < end:
        time.sleep(0.01)


def hibernation_rules(results, folder, variant, counts=(1, 2, 4)):
    check = results.check
    with Guest(folder, variant) as guest:
        guest.boot()
        check("no disk, no hibernation", [guest.ask(f"power kernel {a} 5 0") for a in (2, 3, 4, 6)]
              == [["ok status=0xc00000bb"]] * 4)
    with Guest(folder, variant, "q35") as guest:
        guest.boot()
        check("nor on q35", guest.ask("power kernel 3 5 0") == ["ok status=0xc00000bb"])
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "disk")
        for count in counts:
            with open(path, "wb") as disk:
                disk.truncate(DISK_SIZE)
            resumes(results, folder, variant, path, count)
            hybrid(results, folder, variant, path, count)
        damaged(results, folder, variant, path)


def resumes(results, folder, variant, path, count):
    check = results.check
    arguments = disk_arguments(path, count)
    guest, good = Guest(folder, variant, "pc", arguments), 0
    try:
        guest.boot()
        symbols = guest.symbols()
        guest.ask("guard on")
        guest.ask("load on")
        for who, action in (("user", 3), ("kernel", 4), ("kernel-direct", 6), ("user", 6), ("kernel", 3)):
            guest.run("query-status")
            guest.send(f"#5 power {who} {action} 5 0\n")
            said = guest.line(30) == f"! hibernate action={action} state=5"
            left = guest.process.wait(30) == 0
            rest = guest.qmp.read().decode()
            guest = Guest(folder, variant, "pc", arguments)
            back = [guest.line(30), guest.line(30)] == ["! awake", "#5 ok status=0x00000000"]
            good += (said and left and "SUSPEND_DISK" in rest and back and guest.symbols() == symbols
                     and guest.ask("work 1000") == ["ok calls=1000"])
        check(f"{count} processors: five hibernations, each resumed in a new QEMU", good == 5, good)
        counts = fields(guest.ask("counts")[-1])
        check("entries and returns", counts["entries"] == counts["returns"] == 7, counts)
        before = fields(guest.ask("time")[-1])
        time.sleep(0.3)
        after = fields(guest.ask("time")[-1])
        check("load and guard go on", all(after[k] > before[k] for k in (
            "system-calls", "load-pages", "load-threads", "guard-checks")), (before, after))
        check("clean", guest.ask("check")[-1].startswith("ok clean"))
    finally:
        guest.process.kill()
        guest.process.wait()
    with Guest(folder, variant, "pc", arguments) as guest:
        check("an image is good for one resume", guest.boot().startswith("Vigil guest ready"))


def hybrid(results, folder, variant, path, count):
    check = results.check
    arguments = disk_arguments(path, count)
    with Guest(folder, variant, "pc", arguments) as guest:
        guest.boot()
        symbols = guest.symbols()
        process = symbols["PsInitialSystemProcess"]
        entry = lambda: guest.entry(symbols, process)
        guest.ask("guard on")
        guest.ask("load on")
        good, moved, gone = 0, 0, 0
        for _ in range(3):
            old = entry()
            guest.send("#6 power user 2 5 0\n")
            said = guest.line(30) == "! hybrid-sleep action=2 state=5"
            wait_for_suspension(guest)
            gone += entry() & 1 == 0
            guest.run("system_wakeup")
            good += said and [guest.line(30), guest.line(30)] == ["! awake", "#6 ok status=0x00000000"]
            new = entry()
            moved += new & 1 and (new ^ old) & guest.architecture.frame != 0
        check(f"{count} processors: three hybrid sleeps", good == 3, good)
        check("the pool is gone meanwhile, and back in other frames", gone == moved == 3, (gone, moved))
        check("the same there", guest.identifier(process) == 4 and guest.ask("work 1000") == ["ok calls=1000"])
        guest.send("#6 power user 2 5 0\n")
        guest.line(30)
        wait_for_suspension(guest)
    # Its power has gone while it slept.
    with Guest(folder, variant, "pc", arguments) as guest:
        check("without power, it resumes from the disk",
              [guest.line(30), guest.line(30)] == ["! awake", "#6 ok status=0x00000000"])
        check("as the same guest", guest.symbols() == symbols and guest.ask("work 1000") == ["ok calls=1000"])


def damaged(results, folder, variant, path):
    check = results.check
    arguments = disk_arguments(path, 1)
    with Guest(folder, variant, "pc", arguments) as guest:
        guest.boot()
        guest.send("power kernel 3 5 0\n")
        guest.process.wait(30)
    with open(path, "r+b") as disk:
        disk.seek(1 << 20)
        byte = disk.read(1)
        disk.seek(1 << 20)
        disk.write(bytes([byte[0] ^ 1]))
    with Guest(folder, variant, "pc", arguments) as guest:
        check("a damaged image leads to a fresh boot", guest.boot().startswith("Vigil guest ready"))
