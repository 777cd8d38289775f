// A storage that moves no data: requests complete in virtual time, over one shared link.
//
// Where a destination is new, handing the request over takes the processor some time to find and clear its memory,
// which the clock is advanced by. Then it waits its latency, all of them side by side, and its bytes cross the link in
// the order of submission. What its destination points to is never touched: that it is the first time for a destination
// is known by its address. reap(wait) advances the clock to the next completion.
#pragma once

#include <cstdint>
#include <memory>

#include "base/clock.h"
#include "io/read_queue.h"

namespace drafthorse {

struct LinkOptions {
  double bytes_per_s = 1e9;
  int64_t latency_ns = 100'000;
  double first_touch_s_per_byte = 0;
};

// The clock must outlive the queue.
std::unique_ptr<ReadQueue> make_link_queue(VirtualClock& clock, const LinkOptions& options,
                                           size_t capacity = kReadQueueCapacity);

}  // namespace drafthorse
