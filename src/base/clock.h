// Time as a seam: the engine reads a Clock, tests hand it one that only moves when told to.
#pragma once

#include <sys/resource.h>

#include <chrono>
#include <cstdint>

namespace drafthorse {

class Clock {
 public:
  virtual ~Clock() = default;
  // Monotonic time in nanoseconds from an arbitrary origin.
  virtual int64_t now_ns() const = 0;
};

class SteadyClock final : public Clock {
 public:
  int64_t now_ns() const override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
};

class VirtualClock final : public Clock {
 public:
  int64_t now_ns() const override { return now_ns_; }
  void advance_to(int64_t ns) {
    if (ns > now_ns_) now_ns_ = ns;
  }
  void advance_by(int64_t ns) { now_ns_ += ns; }

 private:
  int64_t now_ns_ = 0;
};

// That all threads of this process have used, in user mode and in the kernel.
inline double processor_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

inline double seconds(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

}  // namespace drafthorse
