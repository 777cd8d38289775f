// What the storage delivers while it is kept busy, learnt from the reads that pass through.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "io/read_queue.h"

namespace drafthorse {

// Hands everything on to `queue`, and watches. A completion's time is known only if somebody was waiting for it; what
// is found done may have been so for long, and if nothing is left then the storage may have been idle since. And what
// is still under way may be read in part or nearly all: some storage works on everything at once. So the rate is taken
// from stretches that begin when reads are submitted to an idle queue and end when it is known to have just become
// empty. Where it never does, a long stretch ends with a completion that was waited for, and the next one begins there.
class MeteredQueue final : public ReadQueue {
 public:
  // `queue` and `clock` must outlive it.
  MeteredQueue(ReadQueue& queue, const Clock& clock) : queue_(queue), clock_(clock) {}

  std::string_view name() const override { return queue_.name(); }
  size_t capacity() const override { return queue_.capacity(); }
  size_t in_flight() const override { return queue_.in_flight() + done_.size(); }
  void submit(std::span<const ReadRequest> requests) override;
  size_t reap(std::span<ReadCompletion> out, bool wait) override;

  // Bytes per second, recent stretches counting more; 0 until enough has been seen.
  double bytes_per_s() const;

 private:
  void look(bool wait);
  void begin_stretch(int64_t now_ns);
  void end_stretch(int64_t now_ns);

  ReadQueue& queue_;
  const Clock& clock_;
  std::vector<ReadCompletion> done_;  // taken from the queue and not yet handed on, in order
  int64_t since_ns_ = 0;              // when the stretch began
  uint64_t since_bytes_ = 0;          // completed since
  int64_t seen_busy_ns_ = 0;          // when something was last seen under way
  double bytes_ = 0;                  // of earlier stretches, older ones discounted
  double seconds_ = 0;                // that they took, discounted likewise
};

}  // namespace drafthorse
