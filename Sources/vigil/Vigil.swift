import ArgumentParser

@main
struct Vigil: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "vigil",
        abstract: "Watches a Windows guest from its hypervisor, and knows when it is about to go down.",
        discussion: """
            Vigil attaches to a guest that runs in an unmodified QEMU. It needs nothing but QEMU's QMP \
            socket (-qmp unix:PATH,server=on,wait=off). It finds the kernel's NtSetSystemPowerState without \
            symbols, sees every sleep, hibernation, reboot and shutdown coming, can hold the caller for a \
            while, and reports how each transition ended.

            Start with "vigil demo", which boots a small bundled guest, and sees it sleep, reboot, \
            hibernate and power off.
            """,
        version: "0.1.0",
        subcommands: [Demo.self, Attach.self, Inspect.self, Guardian.self])
}
