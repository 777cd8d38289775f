#include "base/worker_pool.h"

#include <algorithm>
#include <system_error>

#include "base/check.h"

namespace drafthorse {
namespace {

constexpr int kSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

WorkerPool::WorkerPool(int threads) {
  CHECK(threads >= 1 && threads <= 4096);
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { worker_loop(); });
  } catch (const std::system_error&) {
    // The system allows no more of them: threads() says how many there are.
  }
}

WorkerPool::~WorkerPool() {
  stopping_ = true;
  state_.fetch_add(kOneJob);  // a change to wake up for
  state_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void WorkerPool::work_through() {
  while (true) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= total_) return;
    function_(context_, begin, std::min(begin + grain_, total_));
  }
}

void WorkerPool::run_erased(int64_t total, int64_t grain, Erased function, const void* context) {
  CHECK(grain > 0);
  if (total <= 0) return;
  if (total <= grain || workers_.empty()) {
    for (int64_t begin = 0; begin < total; begin += grain) function(context, begin, std::min(begin + grain, total));
    return;
  }
  total_ = total;
  grain_ = grain;
  function_ = function;
  context_ = context;
  next_.store(0, std::memory_order_relaxed);
  // The previous job is closed and empty: only the job number and the open bit change.
  const uint32_t closed = state_.load(std::memory_order_relaxed);
  state_.store((closed & ~(kOpen | kWorkerMask)) + kOneJob + kOpen, std::memory_order_release);
  state_.notify_all();
  work_through();
  uint32_t state = state_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  for (int spin = 0; (state & kWorkerMask) != 0; ++spin) {
    if (spin < kSpins)
      relax();
    else
      state_.wait(state, std::memory_order_acquire);
    state = state_.load(std::memory_order_acquire);
  }
}

void WorkerPool::worker_loop() {
  uint32_t done_job = 0;  // the job this worker took part in last
  while (true) {
    uint32_t state = state_.load(std::memory_order_acquire);
    for (int spin = 0;; ++spin) {
      if (stopping_) return;
      const bool joinable = (state & kOpen) != 0 && (state & ~(kOpen | kWorkerMask)) != done_job;
      if (joinable) {
        if (state_.compare_exchange_weak(state, state + kOneWorker, std::memory_order_acq_rel)) break;
        continue;  // `state` holds the newest value
      }
      if (spin < kSpins)
        relax();
      else
        state_.wait(state, std::memory_order_acquire);
      state = state_.load(std::memory_order_acquire);
    }
    done_job = state & ~(kOpen | kWorkerMask);
    work_through();
    const uint32_t left = state_.fetch_sub(kOneWorker, std::memory_order_acq_rel) - kOneWorker;
    if ((left & (kOpen | kWorkerMask)) == 0) state_.notify_all();  // the caller may sleep until the last one leaves
  }
}

}  // namespace drafthorse
