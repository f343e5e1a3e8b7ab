#include "charness.h"

#include <pthread.h>

// Known to switch.S.
__attribute__((visibility("hidden"))) uint64_t harness_target, harness_host_rsp, harness_saved_rax;
__attribute__((visibility("hidden"))) uint64_t *harness_out;
__attribute__((visibility("hidden"))) uint32_t harness_host_mxcsr;

__attribute__((visibility("hidden"))) void harness_switch(const uint64_t *in);
__attribute__((visibility("hidden"))) extern const uint8_t harness_arrive[], harness_delay[];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static harness_on_delay callback;
static void *callback_context;

__attribute__((visibility("hidden"))) void harness_report_delay(const struct harness_delay_call *call)
{
    if (callback)
        callback(callback_context, call);
}

void harness_run(const uint64_t *in, uint64_t *out, const void *target, harness_on_delay on_delay, void *context)
{
    pthread_mutex_lock(&lock);
    harness_target = (uint64_t)target;
    harness_out = out;
    callback = on_delay;
    callback_context = context;
    harness_switch(in);
    pthread_mutex_unlock(&lock);
}

uint64_t harness_entry(void) { return (uint64_t)harness_arrive; }

uint64_t harness_delay_function(void) { return (uint64_t)harness_delay; }
