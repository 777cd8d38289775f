#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "base/check.h"
#include "io/read_queue.h"
#include "io/request_routing.h"

namespace drafthorse {

namespace {

// A read that the kernel gives back with EINTR or EAGAIN is tried again this often before the caller sees it.
constexpr int kMaxRetries = 8;
// As often is a submission tried that the kernel has no memory for while nothing of ours is in flight.
constexpr int kMaxSubmitAttempts = 1000;

// A slot's life: free -> staged (an entry in the submission ring) -> in the kernel -> done -> free. From "in the
// kernel" it may go back to staged, for a retry.
class UringQueue final : public ReadQueue {
 public:
  UringQueue(const FileSet& files, size_t capacity) : files_(files), slots_(capacity) {
    for (size_t i = capacity; i > 0; --i) free_.push_back(static_cast<uint32_t>(i - 1));
    done_.reserve(capacity);
  }

  Status initialise() {
    const int result = io_uring_queue_init(static_cast<unsigned>(slots_.size()), &ring_, 0);
    if (result < 0) return refused(-result);
    initialised_ = true;
    io_uring_probe* probe = io_uring_get_probe_ring(&ring_);
    const bool can_read = probe != nullptr && io_uring_opcode_supported(probe, IORING_OP_READ) != 0;
    io_uring_free_probe(probe);
    if (!can_read) return refused(EOPNOTSUPP);
    register_files();
    return {};
  }

  ~UringQueue() override {
    if (!initialised_) return;
    while (in_kernel_ > 0) collect(true);
    io_uring_queue_exit(&ring_);
  }

  std::string_view name() const override { return "io_uring"; }
  size_t capacity() const override { return slots_.size(); }
  size_t in_flight() const override { return slots_.size() - free_.size(); }

  void submit(std::span<const ReadRequest> requests) override {
    CHECK(in_flight() + requests.size() <= capacity());
    for (const ReadRequest& request : requests) {
      check_request(files_, request);
      const uint32_t slot = free_.back();
      free_.pop_back();
      slots_[slot] = {request, 0};
      stage(slot);
    }
    flush();
  }

  size_t reap(std::span<ReadCompletion> out, bool wait) override {
    if (out.empty()) return 0;
    collect(false);
    while (wait && done_.empty() && in_kernel_ > 0) collect(true);
    const size_t count = std::min(out.size(), done_.size());
    std::copy_n(done_.begin(), count, out.begin());
    done_.erase(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(count));
    // A slot is counted as in flight until its completion is handed out.
    for (size_t i = 0; i < count; ++i) {
      free_.push_back(done_slots_.front());
      done_slots_.pop_front();
    }
    return count;
  }

 private:
  struct Slot {
    ReadRequest request;
    int retries = 0;
  };

  static Status refused(int error) {
    return runtime_error(fmt::format(
        "The kernel refuses io_uring here ({}); reads can go through pread threads instead.", std::strerror(error)));
  }

  // Registered descriptors save the kernel a look-up per read; without them the plain ones do.
  void register_files() {
    std::vector<int> descriptors;
    for (size_t i = 0; i < files_.size(); ++i) {
      descriptors.push_back(files_.buffered_fd(static_cast<int>(i)));
      descriptors.push_back(files_.fd(static_cast<int>(i)));
    }
    registered_ = !descriptors.empty() &&
                  io_uring_register_files(&ring_, descriptors.data(), static_cast<unsigned>(descriptors.size())) == 0;
  }

  void stage(uint32_t slot) {
    staged_.push_back(slot);
    if (broken_ != 0) return;
    const ReadRequest& request = slots_[slot].request;
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    CHECK(entry != nullptr);
    const int registered_index = 2 * request.file + (is_aligned_for_direct(request) ? 1 : 0);
    io_uring_prep_read(entry, registered_ ? registered_index : fd_for(files_, request), request.destination,
                       request.bytes, request.offset);
    if (registered_) io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data64(entry, slot);
  }

  // Hands all staged entries to the kernel, which may take them in pieces.
  void flush() {
    int attempts = 0;
    while (!staged_.empty() && broken_ == 0) {
      const int result = io_uring_submit(&ring_);
      if (result > 0) {
        CHECK(static_cast<size_t>(result) <= staged_.size());
        staged_.erase(staged_.begin(), staged_.begin() + result);
        in_kernel_ += static_cast<size_t>(result);
      } else if (result == -EINTR) {
        continue;
      } else if (result == 0 || result == -EAGAIN || result == -EBUSY) {
        if (in_kernel_ > 0) {
          take_completions(true);
        } else if (++attempts == kMaxSubmitAttempts) {
          broken_ = EAGAIN;
        } else {
          std::this_thread::yield();
        }
      } else {
        broken_ = -result;
      }
    }
    // Entries the kernel never took stay in a ring that is not submitted again, so nobody will write for them.
    for (const uint32_t slot : staged_) finish(slot, -broken_);
    staged_.clear();
  }

  void collect(bool wait) {
    take_completions(wait);
    flush();
  }

  void take_completions(bool wait) {
    io_uring_cqe* entry = nullptr;
    if (wait) {
      int result = 0;
      do {
        result = io_uring_wait_cqe(&ring_, &entry);
      } while (result == -EINTR || result == -EAGAIN);
      CHECK(result == 0);
    }
    while (io_uring_peek_cqe(&ring_, &entry) == 0) {
      const auto slot = static_cast<uint32_t>(io_uring_cqe_get_data64(entry));
      const int result = entry->res;
      io_uring_cqe_seen(&ring_, entry);
      CHECK(in_kernel_ > 0);
      --in_kernel_;
      if ((result == -EINTR || result == -EAGAIN) && slots_[slot].retries < kMaxRetries) {
        ++slots_[slot].retries;
        stage(slot);
      } else {
        finish(slot, result);
      }
    }
  }

  void finish(uint32_t slot, int result) {
    done_.push_back({.tag = slots_[slot].request.tag,
                     .bytes = result > 0 ? static_cast<uint32_t>(result) : 0,
                     .error = result < 0 ? -result : 0});
    done_slots_.push_back(slot);
  }

  const FileSet& files_;
  io_uring ring_{};
  bool initialised_ = false;
  bool registered_ = false;
  int broken_ = 0;  // errno after which the ring takes nothing more
  size_t in_kernel_ = 0;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  std::deque<uint32_t> staged_;
  std::vector<ReadCompletion> done_;
  std::deque<uint32_t> done_slots_;  // beside done_
};

}  // namespace

Result<std::unique_ptr<ReadQueue>> make_uring_queue(const FileSet& files, size_t capacity) {
  CHECK(capacity > 0);
  auto queue = std::make_unique<UringQueue>(files, capacity);
  RETURN_IF_ERROR(queue->initialise());
  return std::unique_ptr<ReadQueue>(std::move(queue));
}

std::unique_ptr<ReadQueue> make_read_queue(const FileSet& files, Status* refused, size_t capacity) {
  Result<std::unique_ptr<ReadQueue>> uring = make_uring_queue(files, capacity);
  if (uring.ok()) return std::move(uring).value();
  if (refused != nullptr) *refused = uring.status();
  return make_pread_queue(files, kPreadThreads, capacity);
}

}  // namespace drafthorse
