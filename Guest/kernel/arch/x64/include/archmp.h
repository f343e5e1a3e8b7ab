// x64: what each processor has of its own, and what of it a sleep takes away.

#ifndef VIGIL_ARCHMP_H
#define VIGIL_ARCHMP_H

#define GDT_ENTRIES 12

// What each processor has of its own. The boot processor's is in the image, as
// Windows keeps its KiInitialPCR there.
typedef struct {
    __attribute__((aligned(4096))) KPCR Pcr;
    __attribute__((aligned(4096))) KIDTENTRY Idt[256];
    __attribute__((aligned(16))) ULONG64 Gdt[GDT_ENTRIES];
    __attribute__((aligned(16))) KTSS Tss;
    __attribute__((aligned(16))) UCHAR IstStacks[3][IST_STACK_SIZE];
    PVOID IdleStack; // its lowest address
    struct _ETHREAD *IdleThread;
    volatile LONG Arrival; // KI_ARRIVAL
} KI_PROCESSOR;

// Descriptors that change while the system runs: none.
#define KI_CHANGING_DESCRIPTOR(index) ((void)(index), FALSE)

typedef struct {
    __attribute__((aligned(16))) UCHAR Vectors[0x200]; // FXSAVE
    ULONG64 Registers[8];                              // 0x200
    ULONG64 Rsp, Rip;                                  // 0x240
    ULONG64 Cr3, Cr8;                                  // 0x250
} KI_STATE;
FIELD_AT(KI_STATE, Rsp, 0x240);
FIELD_AT(KI_STATE, Cr3, 0x250);

#endif
