// What of ACPI it takes to tell the time, to find the processors and to put the
// machine to sleep or off: RSDP, FADT, FACS, MADT, and the values of \_S0_ to \_S5_
// in the DSDT (ACPI 6.4, sections 5.2.5, 5.2.9, 5.2.10, 5.2.12, 7.4.2).

#include "../include/hal.h"
#include "../include/mm.h"
#include "../include/rtl.h"

HAL_ACPI HalpAcpi;

typedef struct {
    CHAR Signature[4];
    ULONG Length;
    UCHAR Revision, Checksum;
    CHAR Oem[26];
} __attribute__((packed)) ACPI_HEADER;
C_ASSERT(sizeof(ACPI_HEADER) == 36);

// A table of which all bytes are mapped and sum to zero, else NULL.
static const UCHAR *HalpTable(ULONG64 Physical, const CHAR *Signature)
{
    const UCHAR *Bytes = MmPhysicalToVirtual(Physical);
    ULONG64 Limit = MiBootBlock->directMapSize;

    if (!Physical || Physical + sizeof(ACPI_HEADER) > Limit)
        return NULL;
    const ACPI_HEADER *Header = (const ACPI_HEADER *)Bytes;
    if ((Signature && memcmp(Header->Signature, Signature, 4)) ||
        Header->Length < sizeof *Header || Header->Length > Limit - Physical)
        return NULL;
    UCHAR Sum = 0;
    for (ULONG i = 0; i < Header->Length; i++)
        Sum = (UCHAR)(Sum + Bytes[i]);
    return Sum == 0 ? Bytes : NULL;
}

// In the BIOS area, on a 16-byte boundary.
static const UCHAR *HalpFindRsdp(void)
{
    for (ULONG64 At = 0xE0000; At < 0x100000; At += 16) {
        const UCHAR *Bytes = MmPhysicalToVirtual(At);
        if (memcmp(Bytes, "RSD PTR ", 8))
            continue;
        UCHAR Sum = 0;
        for (ULONG i = 0; i < 20; i++)
            Sum = (UCHAR)(Sum + Bytes[i]);
        if (Sum == 0)
            return Bytes;
    }
    return NULL;
}

static const UCHAR *HalpFindTable(const CHAR *Signature)
{
    const UCHAR *Rsdp = HalpFindRsdp();
    const UCHAR *Rsdt = Rsdp ? HalpTable(*(const ULONG *)(Rsdp + 16), "RSDT") : NULL;
    if (!Rsdt)
        return NULL;
    for (ULONG At = sizeof(ACPI_HEADER); At + 4 <= *(const ULONG *)(Rsdt + 4); At += 4) {
        const UCHAR *Table = HalpTable(*(const ULONG *)(Rsdt + At), Signature);
        if (Table)
            return Table;
    }
    return NULL;
}

// One element of the package: a byte constant, or Zero or One (AML: ACPI 6.4,
// section 20.2.3). Returns the next element.
static const UCHAR *HalpElement(const UCHAR *At, UCHAR *Value)
{
    if (*At == 0x0A) {
        *Value = At[1];
        return At + 2;
    }
    *Value = *At;
    return At + 1;
}

// Name (_S3_, Package {SLP_TYPa, SLP_TYPb, …}): 08 '_S3_' 12 length count …
static INIT_CODE void HalpFindSleepTypes(const UCHAR *Dsdt)
{
    ULONG Length = *(const ULONG *)(Dsdt + 4);
    for (ULONG At = sizeof(ACPI_HEADER); At + 12 < Length; At++) {
        const UCHAR *Name = Dsdt + At;
        if (Name[0] != '_' || Name[1] != 'S' || Name[2] < '0' || Name[2] > '5' || Name[3] != '_' ||
            Name[4] != 0x12)
            continue;
        HAL_SLEEP_TYPE *Type = &HalpAcpi.Sleep[Name[2] - '0'];
        const UCHAR *Element = Name + 5;
        Element += (*Element >> 6) + 1 + 1; // the package's length; its count
        Element = HalpElement(Element, &Type->A);
        HalpElement(Element, &Type->B);
        Type->Known = TRUE;
    }
}

// The FACS has no checksum; it lies where the tables do.
static INIT_CODE PUCHAR HalpFindFacs(ULONG64 Physical)
{
    if (!Physical || Physical + 64 > MiBootBlock->directMapSize)
        return NULL;
    PUCHAR Facs = MmPhysicalToVirtual(Physical);
    return memcmp(Facs, "FACS", 4) ? NULL : Facs;
}

// The local APICs that the MADT says are enabled (type 0, flag bit 0).
static INIT_CODE void HalpFindProcessors(const UCHAR *Madt)
{
    if (!Madt)
        return;
    ULONG Length = *(const ULONG *)(Madt + 4);
    for (ULONG At = 44; At + 2 <= Length && Madt[At + 1] >= 2; At += Madt[At + 1]) {
        if (Madt[At] == 0 && At + 8 <= Length && (Madt[At + 4] & 1) &&
            HalpAcpi.ProcessorCount < HAL_PROCESSORS_MAXIMUM)
            HalpAcpi.ApicIds[HalpAcpi.ProcessorCount++] = Madt[At + 3];
    }
}

INIT_CODE void HalpInitializeAcpi(void)
{
    HalpFindProcessors(HalpFindTable("APIC"));
    const UCHAR *Fadt = HalpFindTable("FACP");
    if (!Fadt)
        return;
    ULONG Length = *(const ULONG *)(Fadt + 4);
    HalpAcpi.SmiCommand = (USHORT) * (const ULONG *)(Fadt + 48);
    HalpAcpi.AcpiEnable = Fadt[52];
    HalpAcpi.Facs = HalpFindFacs(*(const ULONG *)(Fadt + 36));
    HalpAcpi.Pm1aEvent = (USHORT) * (const ULONG *)(Fadt + 56);
    HalpAcpi.Pm1aControl = (USHORT) * (const ULONG *)(Fadt + 64);
    HalpAcpi.Pm1bControl = (USHORT) * (const ULONG *)(Fadt + 68);
    HalpAcpi.PmTimer = (USHORT) * (const ULONG *)(Fadt + 76);
    // RESET_REG is to be used if flag bit 10 says so, in I/O space here.
    if (Length >= 129 && (*(const ULONG *)(Fadt + 112) & 0x400) && Fadt[116] == 1) {
        HalpAcpi.ResetPort = (USHORT) * (const ULONG64 *)(Fadt + 120);
        HalpAcpi.ResetValue = Fadt[128];
        HalpAcpi.HaveReset = TRUE;
    }
    const UCHAR *Dsdt = HalpTable(*(const ULONG *)(Fadt + 40), "DSDT");
    if (Dsdt)
        HalpFindSleepTypes(Dsdt);
}
