#include "cdetour.h"

extern const uint8_t cdetour_handler_start[], cdetour_handler_end[], cdetour_wait[], cdetour_lease[],
    cdetour_lease_limit[], cdetour_shared_data[], cdetour_delay_function[], cdetour_delay_interval[],
    cdetour_entry[];
extern const uint32_t cdetour_stub_size, cdetour_slots;

static uint32_t offset(const uint8_t *symbol) { return (uint32_t)(symbol - cdetour_handler_start); }

struct cdetour_layout cdetour_layout(void)
{
    return (struct cdetour_layout){
        .code = cdetour_handler_start,
        .length = offset(cdetour_handler_end),
        .stub_size = cdetour_stub_size,
        .slots = cdetour_slots,
        .wait = offset(cdetour_wait),
        .lease = offset(cdetour_lease),
        .lease_limit = offset(cdetour_lease_limit),
        .shared_data = offset(cdetour_shared_data),
        .delay_function = offset(cdetour_delay_function),
        .delay_interval = offset(cdetour_delay_interval),
        .entry = offset(cdetour_entry),
    };
}
