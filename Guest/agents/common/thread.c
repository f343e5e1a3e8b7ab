// An agent's life: it is started on a thread of the guest that happens to come by, goes on on a system thread of
// its own, and leaves on that.

#include "agent.h"

#define NOTIFICATION_EVENT 0u
#define SYNCHRONIZATION_EVENT 1u
#define THREAD_ALL_ACCESS 0x1FFFFFu

// Units of 100 ns; negative is relative.
static void AgentWait(AGENT *Agent, u32 Milliseconds)
{
    s64 Interval = -10000ll * Milliseconds;
    Agent->KeWaitForSingleObject(Agent->Event, 0, 0, 0, &Interval);
}

// Until nobody else is in the agent, and nobody can enter any more: the host says the latter.
static void AgentDrain(AGENT *Agent)
{
    while (!Agent->MayLeave || Agent->Inside)
        AgentWait(Agent, 1);
}

WINDOWS HIDDEN void AgentThread(void *Context)
{
    AGENT *Agent = Context;
    u32 Lease = Agent->Lease, Silent = 0, Expected = AgentLoaded;

    __atomic_compare_exchange_n(&Agent->Stage, &Expected, AgentRunning, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    while (!Agent->StopWanted) {
        AgentWork(Agent);
        Agent->Rounds++;
        AgentWait(Agent, Agent->Interval);
        Silent = Agent->Lease == Lease ? Silent + 1 : 0;
        Lease = Agent->Lease;
        if (Silent < Agent->LeaseRounds || Agent->StopWanted)
            continue;
        // Nobody is left who could take it out. While code of the kernel's leads here it has to stay.
        if (!Agent->MayLeave)
            continue;
        Expected = AgentRunning;
        if (__atomic_compare_exchange_n(&Agent->Stage, &Expected, AgentAbandoned, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST)) {
            AgentDrain(Agent);
            AgentFreeAndLeave(Agent);
        }
    }
    Agent->Stage = AgentDraining;
    AgentDrain(Agent);
    // Whose the memory is to give back is decided here, once.
    Expected = 1;
    if (!__atomic_compare_exchange_n(&Agent->StopWanted, &Expected, 3, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        AgentFreeAndLeave(Agent);
    AgentLeave(Agent, AgentLeft);
}

// At PASSIVE_LEVEL, on a borrowed thread. What it returns is an NTSTATUS.
WINDOWS HIDDEN NTSTATUS AgentStart(AGENT *Agent)
{
    OBJECT_ATTRIBUTES Attributes = {.Length = sizeof Attributes, .Attributes = OBJ_KERNEL_HANDLE};

    Agent->KeInitializeEvent(Agent->Event, SYNCHRONIZATION_EVENT, 0);
    NTSTATUS Status = Agent->PsCreateSystemThread(&Agent->Thread, THREAD_ALL_ACCESS, &Attributes, 0, 0,
                                                  AgentThread, Agent);
    if (NT_SUCCESS(Status))
        Agent->ZwClose(Agent->Thread);
    return Status;
}
