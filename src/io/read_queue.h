// Asynchronous reads: the seam between the engine and storage.
//
// One thread owns a queue: submit() hands over a batch, reap() brings back completions in any order. Each submitted
// request completes exactly once, failed ones too, and its destination belongs to the queue until then. A read may
// be short (end of file, interrupted device); the caller decides what that means. Requests go to the file's
// O_DIRECT descriptor when offset, bytes and destination are all multiples of kDirectAlignment, else to the
// buffered one. The FileSet must outlive its queues; a queue's destructor returns once nothing in flight can write to
// its destination any more.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/status.h"
#include "io/file_set.h"

namespace drafthorse {

struct ReadRequest {
  int file = 0;  // index into the FileSet
  uint64_t offset = 0;
  uint32_t bytes = 0;
  std::byte* destination = nullptr;
  uint64_t tag = 0;  // comes back with the completion
};

struct ReadCompletion {
  uint64_t tag = 0;
  uint32_t bytes = 0;  // read; fewer than asked at the end of the file
  int error = 0;       // errno, 0 for success
};

class ReadQueue {
 public:
  virtual ~ReadQueue() = default;

  virtual std::string_view name() const = 0;
  virtual size_t capacity() const = 0;   // requests that may be in flight
  virtual size_t in_flight() const = 0;  // submitted and not yet reaped

  // CHECKs that in_flight() + requests.size() <= capacity().
  virtual void submit(std::span<const ReadRequest> requests) = 0;

  // Fills `out` with completions that are there; returns how many. With wait, blocks until there is at least one,
  // unless nothing is in flight. Never blocks otherwise.
  virtual size_t reap(std::span<ReadCompletion> out, bool wait) = 0;
};

inline constexpr size_t kReadQueueCapacity = 64;

// io_uring. kRuntime where the kernel refuses it (seccomp, sysctl, RLIMIT_MEMLOCK): fall back to pread then.
Result<std::unique_ptr<ReadQueue>> make_uring_queue(const FileSet& files, size_t capacity = kReadQueueCapacity);

// pread(2) on `threads` threads of its own, for where io_uring is missing.
inline constexpr int kPreadThreads = 8;
std::unique_ptr<ReadQueue> make_pread_queue(const FileSet& files, int threads = kPreadThreads,
                                            size_t capacity = kReadQueueCapacity);

// io_uring's where there is one, else pread's. refused: why io_uring was not to be had, if it was not.
std::unique_ptr<ReadQueue> make_read_queue(const FileSet& files, Status* refused = nullptr,
                                           size_t capacity = kReadQueueCapacity);

// Storage for tests: serves from memory, in virtual time, with seeded latency, reordering and faults. reap(wait)
// advances the clock to the next completion; reap(no wait) brings what is due at the clock's present time.
struct FakeStorageOptions {
  uint64_t seed = 1;
  int64_t latency_ns = 100'000;           // per request, +- half of it
  double bytes_per_s = 1e9;               // shared by all requests in flight
  double failure_probability = 0;         // completes with EIO
  double short_read_probability = 0;      // completes with fewer bytes than asked
  int64_t fail_request_number = -1;       // this one (counted from 0) fails with EIO, and only this one
  int64_t fail_from_request_number = -1;  // this one and all after it fail
};
std::unique_ptr<ReadQueue> make_fake_queue(std::vector<std::vector<std::byte>> files, VirtualClock& clock,
                                           FakeStorageOptions options, size_t capacity = kReadQueueCapacity);

// Wraps a queue and injects faults at numbered requests, for end-to-end tests over real files.
struct InjectedFaults {
  int64_t fail_at = -1;    // request number that completes with EIO
  int64_t fail_count = 1;  // and how many fail from there on, -1: all
  int64_t short_at = -1;   // request number that returns half of its bytes
};
std::unique_ptr<ReadQueue> make_fault_injecting_queue(std::unique_ptr<ReadQueue> inner, InjectedFaults faults);

}  // namespace drafthorse
