#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "base/check.h"
#include "io/read_queue.h"

namespace drafthorse {

namespace {

// Seek time runs in parallel for all requests, transfer one after the other over a shared link: a request is due
// when it has waited its own latency and the link has carried it and all before it.
class FakeQueue final : public ReadQueue {
 public:
  FakeQueue(std::vector<std::vector<std::byte>> files, VirtualClock& clock, FakeStorageOptions options, size_t capacity)
      : files_(std::move(files)), clock_(clock), options_(options), capacity_(capacity), random_(options.seed) {}

  std::string_view name() const override { return "fake"; }
  size_t capacity() const override { return capacity_; }
  size_t in_flight() const override { return pending_.size(); }

  void submit(std::span<const ReadRequest> requests) override {
    CHECK(in_flight() + requests.size() <= capacity());
    for (const ReadRequest& request : requests) {
      CHECK(request.file >= 0 && static_cast<size_t>(request.file) < files_.size());
      CHECK(request.destination != nullptr || request.bytes == 0);
      // Whoever looks before the completion sees that it is too early.
      if (request.bytes > 0) std::memset(request.destination, 0xa5, request.bytes);
      pending_.push_back(schedule(request));
    }
  }

  size_t reap(std::span<ReadCompletion> out, bool wait) override {
    if (out.empty() || pending_.empty()) return 0;
    const auto sooner = [](const Pending& a, const Pending& b) {
      return a.due_ns != b.due_ns ? a.due_ns < b.due_ns : a.number < b.number;
    };
    std::sort(pending_.begin(), pending_.end(), sooner);
    if (wait) clock_.advance_to(pending_.front().due_ns);
    size_t count = 0;
    while (count < out.size() && count < pending_.size() && pending_[count].due_ns <= clock_.now_ns()) {
      out[count] = complete(pending_[count]);
      ++count;
    }
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(count));
    return count;
  }

 private:
  struct Pending {
    ReadRequest request;
    int64_t number = 0;
    int64_t due_ns = 0;
    uint32_t bytes = 0;
    int error = 0;
  };

  double draw() { return static_cast<double>(random_() >> 11) * 0x1p-53; }  // in [0, 1)

  Pending schedule(const ReadRequest& request) {
    Pending pending{.request = request, .number = next_number_++};
    const std::vector<std::byte>& content = files_[static_cast<size_t>(request.file)];
    const uint64_t left = request.offset < content.size() ? content.size() - request.offset : 0;
    pending.bytes = static_cast<uint32_t>(std::min<uint64_t>(request.bytes, left));

    // Always the same number of draws, so that one fault more does not change everything after it.
    const double latency_draw = draw();
    const double failure_draw = draw();
    const double short_draw = draw();
    const double length_draw = draw();
    const bool numbered =
        pending.number == options_.fail_request_number ||
        (options_.fail_from_request_number >= 0 && pending.number >= options_.fail_from_request_number);
    if (numbered || failure_draw < options_.failure_probability) {
      pending.error = EIO;
      pending.bytes = 0;
    } else if (short_draw < options_.short_read_probability && pending.bytes > 1) {
      // At least one byte: none would mean the end of the file.
      pending.bytes = 1 + static_cast<uint32_t>(length_draw * (pending.bytes - 1));
    }

    const auto latency_ns = static_cast<int64_t>((0.5 + latency_draw) * static_cast<double>(options_.latency_ns));
    const double transfer_s = options_.bytes_per_s > 0 ? pending.bytes / options_.bytes_per_s : 0;
    const auto transfer_ns = static_cast<int64_t>(transfer_s * 1e9);
    link_free_ns_ = std::max(link_free_ns_, clock_.now_ns()) + transfer_ns;
    pending.due_ns = std::max(clock_.now_ns() + latency_ns + transfer_ns, link_free_ns_);
    return pending;
  }

  ReadCompletion complete(const Pending& pending) const {
    const ReadRequest& request = pending.request;
    if (pending.bytes > 0) {
      const std::vector<std::byte>& content = files_[static_cast<size_t>(request.file)];
      std::memcpy(request.destination, content.data() + request.offset, pending.bytes);
    }
    return {.tag = request.tag, .bytes = pending.bytes, .error = pending.error};
  }

  const std::vector<std::vector<std::byte>> files_;
  VirtualClock& clock_;
  const FakeStorageOptions options_;
  const size_t capacity_;
  std::mt19937_64 random_;
  int64_t next_number_ = 0;
  int64_t link_free_ns_ = 0;
  std::vector<Pending> pending_;
};

}  // namespace

std::unique_ptr<ReadQueue> make_fake_queue(std::vector<std::vector<std::byte>> files, VirtualClock& clock,
                                           FakeStorageOptions options, size_t capacity) {
  CHECK(capacity > 0);
  return std::make_unique<FakeQueue>(std::move(files), clock, options, capacity);
}

}  // namespace drafthorse
