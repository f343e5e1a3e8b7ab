// Several processors: what each has of its own, starting them, and calling on
// them all.

#ifndef VIGIL_MP_H
#define VIGIL_MP_H

#include "ke.h"

#define KI_MAXIMUM_PROCESSORS 4
#define IST_STACK_SIZE 0x2000

// A processor on its way in: it is there; it has been seen and is waited for no
// more; it has read all that it needs of LOW_START's page.
typedef enum { Absent, Arrived, Admitted, Entered } KI_ARRIVAL;

typedef struct {
    USHORT Limit;
    ULONG_PTR Base;
} __attribute__((packed)) KDESCRIPTOR;

#include "archmp.h"

// Vectors of the local APIC, those of Windows.
#define DISPATCH_VECTOR 0x2F
#define CLOCK_VECTOR 0xD1
#define IPI_VECTOR 0xE1
#define SPURIOUS_VECTOR 0xDF

extern CHAR KeNumberProcessors;
extern KI_PROCESSOR *KiProcessors[KI_MAXIMUM_PROCESSORS];

// processor.c
void KiInitializeBootProcessor(void);
void KiInitializeProcessor(KI_PROCESSOR *Processor, ULONG Number);

// lowstart.S: from real mode, at LOW_START, into the kernel.
#define LOW_START 0x8000ull
extern const UCHAR KiLowStart[], KiLowStartEnd[];
typedef struct {
    ULONG64 Root, Entry, Stack, Argument;
} KI_LOW_START;
#define LOW_START_PARAMETERS 0xF00 // in that page: a KI_LOW_START
extern ULONG_PTR KiLowRoot;        // the value of CR3 for it

// multiprocessor.c
typedef void KI_LOW_ENTRY(KI_PROCESSOR *Processor);
void KiPrepareLowStart(KI_LOW_ENTRY *Entry, KI_PROCESSOR *Processor, ULONG_PTR Stack);
BOOLEAN KiBringUp(KI_LOW_ENTRY *Entry, KI_PROCESSOR *Processor, ULONG_PTR Stack);
void KiArrive(KI_PROCESSOR *Processor); // called by the one brought up
void KiStartOtherProcessors(void);

// suspend.S, suspend.c
ULONG KiSaveProcessorState(KI_STATE *State) __attribute__((returns_twice));
NORETURN void KiRestoreProcessorState(const KI_STATE *State);
typedef void KI_SLEEP_ROUTINE(void); // returns only if the machine did not sleep
BOOLEAN KiSuspend(KI_SLEEP_ROUTINE *Sleep);
KI_LOW_START KiWakingPlace(void); // the boot processor's, without the way from real mode
BOOLEAN MmWriteImage(const KI_LOW_START *Where); // mm/image.c

// ipi.c
#define KI_DPC_TIMERS 1
#define KI_DPC_SERIAL 2
void KiRequestDispatch(PKPRCB Prcb, ULONG Requests); // at its next moment below DISPATCH_LEVEL
typedef ULONG_PTR KIPI_BROADCAST_WORKER(ULONG_PTR Argument);
ULONG_PTR KeIpiGenericCall(KIPI_BROADCAST_WORKER *Function, ULONG_PTR Argument);
void KiIpiInterrupt(void);
void KeFlushSingleTb(ULONG_PTR Address); // on all processors
void KeFlushEntireTb(void);

#endif
