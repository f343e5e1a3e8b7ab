"""Rules of several processors, of the guard, of load, and of sleep."""

import re
import time

from harness import Architecture, Guest, Stub


def fields(line):
    return {k: int(v) for k, v in re.findall(r"([a-z-]+)=(\d+)", line)}


def processor_rules(results, folder, variant, machine):
    check = results.check
    for count in (1, 2, 4):
        with Guest(folder, variant, machine, ["-smp", str(count)]) as guest:
            guest.boot()
            rows = guest.ask("processors")
            check(f"{machine}: {count} processors", rows[-1] == f"ok count={count}", rows)
            guest.ask("busy on")
            guest.ask("load on")
            before = guest.ask("time")[-1]
            answers = [guest.ask(c)[-1] for c in
                       ("work 20000", "power user 7 4 0", "power kernel-direct 7 4 0")]
            check("work goes on under load", answers == [
                "ok calls=20000", "ok status=0x00000000", "ok status=0x00000000"], answers)
            time.sleep(0.3)
            before, after = fields(before), fields(guest.ask("time")[-1])
            check("every load makes progress", all(after[k] > before[k] for k in (
                "system-calls", "load-pages", "load-threads", "switches")), after)
            guest.ask("load off")
            time.sleep(0.2)
            left = fields(guest.ask("pool")[-1])["blocks"]
            guest.ask("load on threads")
            time.sleep(0.3)
            guest.ask("load off")
            time.sleep(0.2)
            check("what ended threads leave is reclaimed",
                  fields(guest.ask("pool")[-1])["blocks"] == left)
            # The descriptor tables that QEMU shows are those that the guest names.
            tables = re.findall(r"IDT=\s*([0-9a-f]+)", guest.monitor("info registers -a"))
            named = [re.search(r"idt=0x([0-9a-f]+)", row)[1] for row in rows[:-1]]
            check("each processor has an IDT of its own", tables == named, (tables, named))


def crash_rules(results, folder, variant):
    for word, code in (("irql", 0x0A), ("pool", 0xC2)):
        with Guest(folder, variant, extra=["-smp", "2"]) as guest:
            guest.boot()
            guest.send(f"crash {word}\n")
            results.check(f"crash {word} is bug check 0x{code:X}",
                          guest.until("^bugcheck", 10) == f"bugcheck 0x{code:08x}")


# What the guard must see: a symbol, how far behind it, on how many processors.
def guard_rules(results, folder, variant):
    page_fault = 14 * Architecture(variant).gate_size
    places = [("code", "NtSetSystemPowerState", 3), ("the service table", "KiServiceTable", 9),
              ("the descriptor", "KeServiceDescriptorTable", 16), ("an IDT", "IDT", page_fault + 1),
              ("a stub", "ZwSetSystemPowerState", 1)]
    for index, (what, symbol, offset) in enumerate(places + [("slack", None, 0), ("the second processor's IDT", "IDT2", 7)]):
        with Guest(folder, variant, extra=["-smp", "2"]) as guest:
            guest.boot()
            guest.ask("guard on")
            rows, symbols = guest.ask("processors"), guest.symbols()
            if symbol == "IDT2":
                address = int(re.search(r"idt=0x([0-9a-f]+)", rows[1])[1], 16) + offset
            elif symbol is None:
                # The last byte of .text's last page: in the zeroes.
                address = symbols["TextEnd"] - 1
            else:
                guest.ask("power kernel 7 4 0")  # what is pageable is there
                address = symbols[symbol] + offset
            time.sleep(0.25)
            if index == 0:
                checks = fields(guest.ask("time")[-1])["guard-checks"]
                results.check("the guard is quiet over what is whole", checks >= 2, checks)
            with Stub(guest) as stub:
                byte = int(stub.ask(f"m{address:x},1"), 16)
                stub.write(address, bytes([byte ^ 1]))
            results.check(f"one flipped bit in {what}",
                          guest.until("^bugcheck", 10) == "bugcheck 0x00000109")


def resume_guard_rules(results, folder, variant):
    """The guard that looks on resuming alone."""
    with Guest(folder, variant, extra=["-smp", "2"]) as guest:
        guest.boot()
        results.check("guard resume", guest.ask("guard resume") == ["ok guard=resume"])
        results.check("no such guard", guest.ask("guard sometimes")[-1].startswith("error"))

        def sleep():
            guest.send("power kernel 2 4 0\n")
            guest.line()
            while "suspended" not in guest.monitor("info status"):
                time.sleep(0.01)
            guest.run("system_wakeup")

        sleep()
        results.check("whole code resumes", [guest.line(20), guest.line(20)] == ["! awake", "ok status=0x00000000"])
        checks = fields(guest.ask("time")[-1])["guard-checks"]
        address = guest.symbols()["TextEnd"] - 1
        with Stub(guest) as stub:
            stub.write(address, b"\x90")
        time.sleep(0.3)
        results.check("and is looked at then alone",
                      checks == 1 and fields(guest.ask("time")[-1])["guard-checks"] == 1)
        sleep()
        results.check("a changed byte is seen on resuming", guest.until("^bugcheck", 20) == "bugcheck 0x00000109")


def sleep_rules(results, folder, variant, machine, counts=(1, 2, 4), rounds=5):
    check = results.check
    for count in counts:
        with Guest(folder, variant, machine, ["-smp", str(count)]) as guest:
            guest.boot()
            guest.ask("guard on")
            guest.ask("refuse on")
            check("a refused sleep", guest.ask("power user 2 4 0") == ["ok status=0xc00002d3"])
            guest.ask("refuse off")
            guest.ask("load on")
            done, slept = 0, 0
            for index in range(rounds):
                guest.send(f"power {('user', 'kernel', 'kernel-direct')[index % 3]} 2 {2 + index % 3} 0\n")
                if (line := guest.line()) != f"! sleep action=2 state={2 + index % 3}":
                    check("asleep", False, line)
                    break
                end = time.monotonic() + 10
                while "suspended" not in guest.monitor("info status") and time.monotonic() < end:
                    time.sleep(0.01)
                if index == 0:
                    before = fields(guest.lines[-1])
                    time.sleep(1.5)
                guest.run("system_wakeup")
                answer = [guest.line(20), guest.line(20)]
                done += answer == ["! awake", "ok status=0x00000000"]
                if index == 0:
                    slept = fields(guest.ask("time")[-1])
            check(f"{machine}, {count} processors: {rounds} sleeps under load and guard", done == rounds, done)
            check("interrupt time takes in the sleep, and its bias says so",
                  slept["bias"] >= 10_000_000 and slept["interrupt-time"] > slept["bias"], slept)
            before = fields(guest.ask("time")[-1])
            time.sleep(0.3)
            after = fields(guest.ask("time")[-1])
            check("all goes on afterwards", all(after[k] > before[k] for k in (
                "system-calls", "load-pages", "load-threads", "guard-checks")), (before, after))
            counts_line = fields(guest.ask("counts")[-1])
            check("entries and returns", counts_line["entries"] == counts_line["returns"])
            check("clean", guest.ask("check")[-1].startswith("ok clean"))


def second_sleep_on_q35(results, folder, variant):
    with Guest(folder, variant, "q35", ["-smp", "2"]) as guest:
        guest.boot()
        guest.send("power kernel 2 4 0\n")
        guest.line()
        while "suspended" not in guest.monitor("info status"):
            time.sleep(0.01)
        guest.run("system_wakeup")
        results.check("q35 sleeps once", [guest.line(20), guest.line()] == ["! awake", "ok status=0x00000000"])
        results.check("and says that it cannot again",
                      guest.ask("power kernel 2 4 0") == ["ok status=0xc000009e"])


def paging_rules(results, folder, variant):
    check = results.check
    with Guest(folder, variant, extra=["-smp", "2"]) as guest:
        guest.boot()
        symbols = guest.symbols()
        function = symbols["NtSetSystemPowerState"]

        architecture = guest.architecture

        def entry(address):
            return guest.entry(symbols, address)

        def here():
            return entry(function) & 1 == 1

        def physical(frame_entry):
            page = frame_entry & architecture.frame
            return guest.monitor(f"xp /16bx 0x{page + function % 4096:x}").split("\n")[0].split(": ")[1]

        check("absent until called, in transition", entry(function) & 0xC01 == 0x800, hex(entry(function)))
        transition = entry(function)
        guest.ask("power kernel 7 4 0")
        check("there once called", here() and (entry(function) ^ transition) & architecture.frame == 0)
        code = physical(entry(function))
        before = fields(guest.ask("time")[-1])["pages-in"]
        for kind, bits in (("transition", 0x800), ("prototype", 0x400), ("shared", 0x400)):
            answer = guest.ask(f"trim {kind}")[-1]
            found = entry(function)
            # In a prototype's entry of x86's, bit 11 is something else.
            mask = 0xC01 if bits == 0x800 or architecture.is64 else 0x401
            check(f"trim {kind}", answer.startswith("ok pages=") and found & mask == bits, (answer, hex(found)))
            if bits == 0x400:
                found = guest.read_entry(architecture.prototype(found, symbols.get("MmProtopteBase")))
                check("the prototype says where it is", found & 0xC01 == (1 if kind == "shared" else 0x800))
            check("its frame holds the code", physical(found) == code)
            check("a call through ring 3 brings it in",
                  guest.ask("power user 7 4 0") == ["ok status=0x00000000"] and here())
        after = fields(guest.ask("time")[-1])["pages-in"]
        check("by page faults", after >= before + 3, (before, after))
        guest.ask("slow 50")
        guest.ask("guard on")
        guest.ask("load on")
        for index in range(20):
            guest.send(f"#{index} power {('user', 'kernel')[index % 2]} 7 4 0\n")
        answers = []
        for index in range(60):
            guest.send(f"trim {('transition', 'prototype', 'shared')[index % 3]}\n")
            while not (line := guest.line()).startswith("ok pages"):
                answers.append(line)
        while len(answers) < 20:
            answers.append(guest.line())
        check("gone again and again under twenty callers", sorted(answers) == sorted(
            f"#{i} ok status=0x00000000" for i in range(20)), answers)
        check("nothing changed", guest.ask("check")[-1].startswith("ok clean"))
