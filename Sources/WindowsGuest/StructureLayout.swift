import GuestMemory

/// Where an architecture's kernels have the fields that no build has moved, in bytes.
///
/// Source: Microsoft's public symbols of ntoskrnl and ntdll, Windows XP to Windows 11. What does move is derived from
/// each kernel (`KernelOffsets`).
public struct StructureLayout: Hashable, Sendable {
    public var pointerSize: UInt64
    /// `_KPROCESS.DirectoryTableBase`.
    public var directoryTableBase: UInt64
    /// `_PEB.Ldr`.
    public var loaderData: UInt64
    /// `_PEB_LDR_DATA.InLoadOrderModuleList`.
    public var loadOrderList: UInt64
    /// `_LDR_DATA_TABLE_ENTRY.DllBase`, in the kernel's and in a process's entries.
    public var moduleBase: UInt64
    /// `_LDR_DATA_TABLE_ENTRY.BaseDllName`.
    public var moduleName: UInt64
    /// `_KSERVICE_TABLE_DESCRIPTOR.Limit`, behind Base and Count.
    public var serviceLimit: UInt64
    /// `_KSERVICE_TABLE_DESCRIPTOR.Number`: one byte of arguments for each service, or null.
    public var serviceArguments: UInt64
    /// The size of a `_KSERVICE_TABLE_DESCRIPTOR`.
    public var serviceDescriptorSize: UInt64
    /// The first address that no program can have: with `/3GB` a 32-bit program has three quarters.
    public var userEnd: UInt64
    /// Where the kernel sees `_KUSER_SHARED_DATA`.
    public var sharedUserData: GuestVirtualAddress

    public static let x64 = Self(
        pointerSize: 8, directoryTableBase: 0x28, loaderData: 0x18, loadOrderList: 0x10, moduleBase: 0x30,
        moduleName: 0x58, serviceLimit: 0x10, serviceArguments: 0x18, serviceDescriptorSize: 0x20,
        userEnd: 1 << 47, sharedUserData: GuestVirtualAddress(0xffff_f780_0000_0000))

    public static let x86 = Self(
        pointerSize: 4, directoryTableBase: 0x18, loaderData: 0x0c, loadOrderList: 0x0c, moduleBase: 0x18,
        moduleName: 0x2c, serviceLimit: 0x08, serviceArguments: 0x0c, serviceDescriptorSize: 0x10,
        userEnd: 0xc000_0000, sharedUserData: GuestVirtualAddress(0xffdf_0000))
}

extension KernelArchitecture {
    /// The fields that never move in kernels of this architecture.
    public var layout: StructureLayout { self == .x64 ? .x64 : .x86 }
}
