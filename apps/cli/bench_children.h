// The runs of a bench, each in a process of its own, with what is shown meanwhile.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "console.h"
#include "interrupts.h"

namespace drafthorse::cli {

class BenchChildren {
 public:
  explicit BenchChildren(Console& console) : console_(console) {}

  // So many runs are to come; time is counted from here on.
  void begin(size_t runs);
  // `drafthorse ARGUMENTS..` to its end. kInterrupted after Ctrl-C; kRuntime, with what it said and its command, where
  // it fails. `what` it is stands beside the progress.
  Status run(const std::vector<std::string>& arguments, const std::string& what);
  void count_one() { ++done_; }
  size_t done() const { return done_; }
  // "3 of 12 runs, 40 s left"
  std::string progress() const;

 private:
  std::string time_left() const;
  void show(const std::string& what);

  Console& console_;
  Interrupts interrupts_;
  SteadyClock clock_;
  int64_t start_ns_ = 0;
  size_t total_ = 0;
  size_t done_ = 0;
};

// What is in the file, which is no more; nothing where that cannot be read.
std::optional<std::string> taken(const std::string& path);

// For a bench that was not told where to write to.
std::string new_folder_name();

}  // namespace drafthorse::cli
