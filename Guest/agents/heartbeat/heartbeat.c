// The heartbeat: a thread of the guest's own that says when it last ran. Changes nothing but its own memory.

#include "../common/agent.h"

#define SHARED_DATA_INTERRUPT_TIME 0x08 // KUSER_SHARED_DATA.InterruptTime

typedef struct {
    volatile u64 LastBeat; // interrupt time, in 100 ns
    volatile u64 LongestGap; // between two beats, in 100 ns
} HEARTBEAT_DATA;

HIDDEN HEARTBEAT_DATA AgentData __attribute__((section(".data"))) = {0, 0};

HIDDEN void AgentWork(AGENT *Agent)
{
    HEARTBEAT_DATA *Data = &AgentData;
    u64 Now = *(volatile u64 *)(Agent->SharedData + SHARED_DATA_INTERRUPT_TIME);
    if (Data->LastBeat && Now - Data->LastBeat > Data->LongestGap)
        Data->LongestGap = Now - Data->LastBeat;
    Data->LastBeat = Now;
}
