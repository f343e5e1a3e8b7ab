// x86: what each processor has of its own, and what of it a sleep takes away.

#ifndef VIGIL_ARCHMP_H
#define VIGIL_ARCHMP_H

#define GDT_ENTRIES 16

// What each processor has of its own. The boot processor's is in the image, as
// Windows has its first KPCR there.
typedef struct {
    __attribute__((aligned(4096))) KPCR Pcr;
    __attribute__((aligned(4096))) KIDTENTRY Idt[256];
    __attribute__((aligned(16))) ULONG64 Gdt[GDT_ENTRIES];
    __attribute__((aligned(128))) KTSS Tss; // in one page, as the processor wants it
    __attribute__((aligned(128))) KTSS DoubleFaultTss;
    __attribute__((aligned(128))) KTSS NmiTss;
    // For a double fault, for an NMI, and for the way back from a sleep.
    __attribute__((aligned(16))) UCHAR IstStacks[3][IST_STACK_SIZE];
    PVOID IdleStack; // its lowest address
    struct _ETHREAD *IdleThread;
    volatile LONG Arrival; // KI_ARRIVAL
} KI_PROCESSOR;

// Descriptors that change while the system runs: the TEB's, and those whose tasks
// the processor marks as busy.
#define KI_CHANGING_DESCRIPTOR(index) \
    ((index) == KGDT_R3_TEB / 8 || (index) == KGDT_TSS / 8 || (index) == KGDT_DF_TSS / 8 || \
     (index) == KGDT_NMI_TSS / 8)

typedef struct {
    __attribute__((aligned(16))) UCHAR Vectors[0x200]; // FXSAVE
    ULONG Ebx, Ebp, Esi, Edi;                          // 0x200
    ULONG Esp, Eip, Cr3, Priority;                     // 0x210
} KI_STATE;
FIELD_AT(KI_STATE, Ebx, 0x200);
FIELD_AT(KI_STATE, Esp, 0x210);
FIELD_AT(KI_STATE, Cr3, 0x218);

#endif
