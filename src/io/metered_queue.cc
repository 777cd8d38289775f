#include "io/metered_queue.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/units.h"

namespace drafthorse {

void MeteredQueue::submit(std::span<const ReadRequest> requests) {
  look(false);
  const int64_t now = clock_.now_ns();
  if (queue_.in_flight() == 0) begin_stretch(now);
  queue_.submit(requests);
  seen_busy_ns_ = now;
}

size_t MeteredQueue::reap(std::span<ReadCompletion> out, bool wait) {
  look(wait && done_.empty());
  const size_t count = std::min(out.size(), done_.size());
  std::copy_n(done_.begin(), count, out.begin());
  done_.erase(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(count));
  return count;
}

// Takes all that is done: whether the storage is busy shows only then.
void MeteredQueue::look(bool wait) {
  std::array<ReadCompletion, 32> some;
  uint64_t bytes = 0;
  const auto take = [&](bool block) {
    const size_t count = queue_.reap(some, block);
    for (size_t i = 0; i < count; ++i) bytes += some[i].bytes;
    done_.insert(done_.end(), some.begin(), some.begin() + static_cast<std::ptrdiff_t>(count));
    return count;
  };
  if (queue_.in_flight() == 0) return;
  const size_t before = done_.size();
  while (take(false) == some.size()) {
  }
  const bool waited = wait && done_.size() == before;
  if (waited) take(true);
  since_bytes_ += bytes;

  constexpr int64_t kSureEnough = 20;  // an end is known to one part in so many of its stretch
  constexpr uint64_t kLongBytes = 256 * kMiB;
  const int64_t now = clock_.now_ns();
  const bool busy = queue_.in_flight() > 0;
  const bool known = waited || (now - seen_busy_ns_) * kSureEnough <= now - since_ns_;
  if (busy ? waited && since_bytes_ >= kLongBytes : known) end_stretch(now);
  if (busy) seen_busy_ns_ = now;
}

double MeteredQueue::bytes_per_s() const {
  constexpr double kLeastBytes = 8.0 * kMiB;
  return bytes_ >= kLeastBytes && seconds_ > 0 ? bytes_ / seconds_ : 0;
}

void MeteredQueue::begin_stretch(int64_t now_ns) {
  since_ns_ = now_ns;
  since_bytes_ = 0;
}

// Sums, not a mean of rates: a short stretch says little.
void MeteredQueue::end_stretch(int64_t now_ns) {
  constexpr double kMemoryBytes = 512.0 * kMiB;
  const auto bytes = static_cast<double>(since_bytes_);
  const double kept = std::exp(-bytes / kMemoryBytes);
  bytes_ = kept * bytes_ + bytes;
  seconds_ = kept * seconds_ + seconds(now_ns - since_ns_);
  begin_stretch(now_ns);
}

}  // namespace drafthorse
