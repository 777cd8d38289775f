#include "simulate/link_queue.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <unordered_set>

#include "base/check.h"

namespace drafthorse {
namespace {

class LinkQueue final : public ReadQueue {
 public:
  LinkQueue(VirtualClock& clock, const LinkOptions& options, size_t capacity)
      : clock_(clock), options_(options), capacity_(capacity) {}

  std::string_view name() const override { return "link"; }
  size_t capacity() const override { return capacity_; }
  size_t in_flight() const override { return pending_.size(); }

  void submit(std::span<const ReadRequest> requests) override {
    CHECK(in_flight() + requests.size() <= capacity());
    for (const ReadRequest& request : requests) {
      touch(request);
      // Kept as a fraction of a nanosecond: a thousand roundings would add up.
      const double now = static_cast<double>(clock_.now_ns());
      const double transfer = request.bytes / options_.bytes_per_s * 1e9;
      link_free_ns_ = std::max(link_free_ns_, now) + transfer;
      const double due = std::max(now + static_cast<double>(options_.latency_ns) + transfer, link_free_ns_);
      // All have the same latency, so they complete in the order of submission.
      pending_.push_back({request.tag, request.bytes, static_cast<int64_t>(std::ceil(due))});
    }
  }

  size_t reap(std::span<ReadCompletion> out, bool wait) override {
    if (out.empty() || pending_.empty()) return 0;
    if (wait) clock_.advance_to(pending_.front().due_ns);
    size_t count = 0;
    while (count < out.size() && !pending_.empty() && pending_.front().due_ns <= clock_.now_ns()) {
      out[count++] = {.tag = pending_.front().tag, .bytes = pending_.front().bytes, .error = 0};
      pending_.pop_front();
    }
    return count;
  }

 private:
  void touch(const ReadRequest& request) {
    if (options_.first_touch_s_per_byte == 0 || !touched_.insert(request.destination).second) return;
    touching_ns_ += options_.first_touch_s_per_byte * request.bytes * 1e9;
    const double whole = std::floor(touching_ns_);
    clock_.advance_by(static_cast<int64_t>(whole));
    touching_ns_ -= whole;
  }

  struct Pending {
    uint64_t tag = 0;
    uint32_t bytes = 0;
    int64_t due_ns = 0;
  };

  VirtualClock& clock_;
  const LinkOptions options_;
  const size_t capacity_;
  double link_free_ns_ = 0;
  double touching_ns_ = 0;                        // not yet on the clock
  std::unordered_set<const std::byte*> touched_;  // where reads went to; slots are read into at the same places again
  std::deque<Pending> pending_;
};

}  // namespace

std::unique_ptr<ReadQueue> make_link_queue(VirtualClock& clock, const LinkOptions& options, size_t capacity) {
  CHECK(capacity > 0 && options.bytes_per_s > 0 && options.latency_ns >= 0);
  return std::make_unique<LinkQueue>(clock, options, capacity);
}

}  // namespace drafthorse
