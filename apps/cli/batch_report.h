// What a batch says about itself: while it runs, in the end, and as JSON (docs/batch.md).
#pragma once

#include <cstdint>
#include <deque>
#include <nlohmann/json.hpp>
#include <string>

#include "batch_job.h"
#include "console.h"
#include "engine/batch.h"
#include "engine/engine.h"

namespace drafthorse::cli {

// Tokens per second over the last while.
class SpeedMeter {
 public:
  static constexpr int64_t kWindowNs = 20'000'000'000;

  // Of tokens generated so far; time moves on.
  void note(int64_t now_ns, int64_t tokens);
  // Over the window, or since the first note; 0 before the second.
  double tokens_per_s() const;

 private:
  struct Sample {
    int64_t ns = 0;
    int64_t tokens = 0;
  };
  std::deque<Sample> samples_;
};

// Seconds until all is done, if the other requests generate as much of what they may as those answered did and speed
// stays; below 0: unknown.
// generating: tokens generated for requests that are not finished.
double time_left(const JobCounts& counts, int64_t generating, double tokens_per_s);

// 45 s, 12:03 min, 3:25 h
std::string format_duration(double seconds);

// "123 of 2000, 345 tokens/s, 4:05 min left, 64 active, depth 3"
std::string progress_text(const JobCounts& counts, const BatchStats& stats, const BatchIteration& last, int64_t active,
                          double tokens_per_s);

struct JobReport {
  const Engine& engine;
  const JobCounts& counts;
  const BatchStats& stats;
  std::string explanation;       // of depth and number of sequences
  double seconds = 0;            // from the start of the program, loading included
  double load_seconds = 0;       // of these
  double processor_seconds = 0;  // while requests were worked on, of all threads
  bool interrupted = false;
};

void print_counts(Console& console, const JobCounts& counts);
void print_summary(Console& console, const JobReport& report);  // the counts first
void print_stats(Console& console, const JobReport& report);
nlohmann::ordered_json stats_json(const JobReport& report);
// One iteration, without the end of the line; seconds: of all of it.
std::string iteration_line(const BatchIteration& one, int64_t number, double seconds);

}  // namespace drafthorse::cli
