#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "base/check.h"
#include "io/read_queue.h"
#include "io/request_routing.h"

namespace drafthorse {

namespace {

class PreadQueue final : public ReadQueue {
 public:
  PreadQueue(const FileSet& files, int threads, size_t capacity) : files_(files), capacity_(capacity) {
    for (int i = 0; i < threads; ++i) {
      try {
        threads_.emplace_back([this] { serve(); });
      } catch (const std::system_error&) {
        break;  // fewer than asked for will do
      }
    }
  }

  // Reads that no thread has begun are dropped; those begun are finished first.
  ~PreadQueue() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_arrived_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  std::string_view name() const override { return "pread"; }
  size_t capacity() const override { return capacity_; }
  size_t in_flight() const override { return in_flight_; }

  void submit(std::span<const ReadRequest> requests) override {
    CHECK(in_flight_ + requests.size() <= capacity_);
    for (const ReadRequest& request : requests) check_request(files_, request);
    in_flight_ += requests.size();
    if (threads_.empty()) {
      for (const ReadRequest& request : requests) done_.push_back(read(request));
      return;
    }
    {
      const std::lock_guard lock(mutex_);
      waiting_.insert(waiting_.end(), requests.begin(), requests.end());
    }
    if (requests.size() == 1) {
      work_arrived_.notify_one();
    } else {
      work_arrived_.notify_all();
    }
  }

  size_t reap(std::span<ReadCompletion> out, bool wait) override {
    if (out.empty() || in_flight_ == 0) return 0;
    std::unique_lock lock(mutex_);
    if (wait) read_finished_.wait(lock, [this] { return !done_.empty(); });
    const size_t count = std::min(out.size(), done_.size());
    std::copy_n(done_.begin(), count, out.begin());
    done_.erase(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(count));
    in_flight_ -= count;
    return count;
  }

 private:
  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      work_arrived_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      const ReadRequest request = waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      const ReadCompletion completion = read(request);
      lock.lock();
      done_.push_back(completion);
      read_finished_.notify_one();
    }
  }

  ReadCompletion read(const ReadRequest& request) const {
    const int fd = fd_for(files_, request);
    ssize_t count = 0;
    do {
      count = ::pread(fd, request.destination, request.bytes, static_cast<off_t>(request.offset));
    } while (count < 0 && errno == EINTR);
    return {.tag = request.tag, .bytes = count > 0 ? static_cast<uint32_t>(count) : 0, .error = count < 0 ? errno : 0};
  }

  const FileSet& files_;
  const size_t capacity_;
  size_t in_flight_ = 0;  // the owner's; not shared
  std::mutex mutex_;      // guards all below
  std::condition_variable work_arrived_;
  std::condition_variable read_finished_;
  std::deque<ReadRequest> waiting_;
  std::deque<ReadCompletion> done_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<ReadQueue> make_pread_queue(const FileSet& files, int threads, size_t capacity) {
  CHECK(capacity > 0);
  return std::make_unique<PreadQueue>(files, std::max(threads, 1), capacity);
}

}  // namespace drafthorse
