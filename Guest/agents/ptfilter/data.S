// What the filter shares with the host; filter.h has its fields. The image is linked at 0, so that a symbol's
// value is its offset. Its pages are not those of the code: see entry.S.

#include "filter.h"

    .section .data, "aw"
    .balign 4096
    .globl AgentData
    .hidden AgentData
AgentData:
    .long FILTER_DATA_VERSION
    .long FILTER_DATA_SIZE
    .long FilterWriters, FILTER_WRITER_SLOTS, FILTER_WRITER_SIZE
    .long FilterWatches, FILTER_WATCH_SLOTS, FILTER_WATCH_SIZE
    .long FilterRing, FILTER_RING_SLOTS, FILTER_REPORT_SIZE
    .long FILTER_PROBES
    .long FilterReportPoint
    .balign 64
    .fill FILTER_DATA_SIZE - (. - AgentData), 1, 0
