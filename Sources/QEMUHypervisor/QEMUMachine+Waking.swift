import HypervisorInterface

extension QEMUMachine {
    /// The memory region of the ACPI control register, which sleep and power-off are asked for by.
    private static let controlRegister = "acpi-cnt"

    /// On some machine types a wake takes the ACPI registers from their ports, and no firmware puts them back.
    public func lossByWaking() throws(HypervisorError) -> String? {
        let name = Self.controlRegister
        if MonitorText.isPort(name, inTree: try qmp.monitor("info mtree -f")) { return nil }
        // It slept by that register, if it has one; a machine that has none sleeps by other means.
        guard MonitorText.isRegion(name, ofObjects: try qmp.monitor("info qom-tree")) else { return nil }
        return """
            the guest can neither sleep again nor power off until it is reset: when it woke, QEMU took the ACPI \
            registers from their ports, and its firmware did not put them back; this is a limit of QEMU's machine type
            """
    }
}
