// Fork and join on a fixed set of threads, for loops inside a kernel.
//
// The caller takes part in the work and hands out pieces dynamically, so a worker that the system does not run costs
// only the piece it holds: on a machine busy with other things nothing waits for a time slice. Workers that find
// nothing to do spin for some tens of microseconds, then sleep.
//
// One thread at a time may call run(); the function may run on any thread of the pool.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace drafthorse {

class WorkerPool {
 public:
  // `threads` in all, the caller included; at least 1. Fewer where the system does not allow as many.
  explicit WorkerPool(int threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls function(begin, end) for disjoint parts of [0, total), each of at most `grain`, until all are done.
  template <typename Function>
  void run(int64_t total, int64_t grain, const Function& function) {
    run_erased(
        total, grain,
        [](const void* context, int64_t begin, int64_t end) { (*static_cast<const Function*>(context))(begin, end); },
        &function);
  }

 private:
  using Erased = void (*)(const void* context, int64_t begin, int64_t end);
  void run_erased(int64_t total, int64_t grain, Erased function, const void* context);
  void work_through();
  void worker_loop();

  // state_: bit 0: a job is open for joining; bits 1 to 12: workers that joined and have not left; above: job number.
  // A worker joins only an open job, and run() returns only when the job is closed and everybody has left.
  static constexpr uint32_t kOpen = 1;
  static constexpr uint32_t kOneWorker = 2;
  static constexpr uint32_t kWorkerMask = 0x1FFE;
  static constexpr uint32_t kOneJob = 0x2000;

  alignas(64) std::atomic<uint32_t> state_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  std::atomic<bool> stopping_{false};
  int64_t total_ = 0;
  int64_t grain_ = 1;
  Erased function_ = nullptr;
  const void* context_ = nullptr;
  std::vector<std::thread> workers_;
};

}  // namespace drafthorse
