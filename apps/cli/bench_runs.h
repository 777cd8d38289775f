// The lines of a bench's file, runs.jsonl, and what they say together. Pure.
//
// A line is one JSON object; "kind" is "run" (a measurement) or "timeline" (a part of one run's trace). Lines are
// appended as runs end, so that a bench that is cut short leaves what it has.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "bench_json.h"
#include "sample_statistics.h"

namespace drafthorse::cli {

// What identifies a run within a bench.
struct RunKey {
  std::string suite;
  std::string contender;
  std::string budget;  // as asked for: "35%" or a size
  std::string prompt;
  int64_t round = 0;

  auto operator<=>(const RunKey&) const = default;
};

struct BenchRun {
  RunKey key;
  std::string figure;    // how its suite is drawn: see name_of(Figure)
  std::string title;     // of its suite
  std::string baseline;  // of its suite
  std::string policy;
  std::string depth;   // auto, off, or a number
  std::string cutoff;  // auto or a number
  std::string model;
  std::string draft;
  std::string drafter;  // as asked for; none: nothing is drafted
  std::string machine;
  std::string version;
  std::string bench;    // the command that made the bench
  std::string command;  // the command that makes this run
  std::string note;     // of the engine about this contender; empty: none
  int64_t tokens = 0;   // asked for
  int64_t generated_tokens = 0;
  double tpot_s = 0;
  double ttft_s = 0;
  double hit_rate = 0;
  double stall_s_per_token = 0;
  double bytes_per_token = 0;
  double acceptance = 0;
  double tokens_per_verification = 0;
  double mean_depth = 0;
  std::optional<double> cutoff_layers;  // prefetched while drafting, on average; of policies that have such a layer
  uint64_t ram_bytes = 0;
  uint64_t peak_rss_bytes = 0;
  int64_t slots = 0;
  int64_t experts = 0;
  std::vector<double> hit_rate_by_layer;  // -1: nothing was demanded of the layer
  std::vector<double> precision_by_layer;
  std::vector<double> recall_by_layer;
  std::string text_hash;
};

// What a run did in a stretch of its decoding.
struct BenchTimeline {
  RunKey key;
  double length_ms = 0;
  TimeSpans draft, verify, stall;       // the engine's thread; stalls are within verify (or draft)
  TimeSpans demand_reads, ahead_reads;  // at least one under way
};

nlohmann::ordered_json to_json(const BenchRun& run);
nlohmann::ordered_json to_json(const BenchTimeline& timeline);
// A run's line out of what `drafthorse run --stats-file` wrote; what that does not know stands in `of` already.
// kFile where it is no such file.
Result<BenchRun> with_statistics(BenchRun of, const std::string& stats_text);

// The stretch in the middle of the decoding in a trace of `run --trace`: `length_ms` of it, or all where it is shorter.
// kFile where it is no such trace.
Result<BenchTimeline> timeline_of_trace(const std::string& trace_text, RunKey key, double length_ms);

struct BenchFile {
  std::vector<BenchRun> runs;
  std::vector<BenchTimeline> timelines;
  bool last_line_cut = false;  // it was being written when the bench ended; ignored
};

// kFile, naming the line, where one is none of ours.
Result<BenchFile> parse_bench_file(const std::string& text, const std::string& name);

// Runs of one prompt whose text is not that of the prompt's first run: one sentence each. Empty: all is well.
std::vector<std::string> differing_texts(const std::vector<BenchRun>& runs);

// A contender under one budget, over rounds and prompts.
struct Summary {
  std::string contender;
  std::string budget;
  const BenchRun* sample = nullptr;  // one of its runs
  size_t runs = 0;
  Spread tpot_s;
  // The baseline's time over its own, by pairs of the same round and prompt.
  Spread speed;
  double mean_speed = 0;  // their geometric mean; 0 where there is no pair
  double hit_rate = 0;    // this and what follows: medians
  double stall_s_per_token = 0;
  double bytes_per_token = 0;
  double acceptance = 0;
  double tokens_per_verification = 0;
  double mean_depth = 0;
  std::optional<double> cutoff_layers;
};

struct SuiteSummary {
  std::string suite;
  std::string title;
  std::string figure;
  std::string baseline;
  std::vector<std::string> budgets;     // in their order
  std::vector<std::string> contenders;  // likewise
  std::vector<std::string> prompts;
  int64_t rounds = 0;
  std::vector<Summary> rows;  // by budget, then contender; those that have runs

  const Summary* find(const std::string& contender, const std::string& budget) const;
};

// `runs` must outlive the result.
std::vector<SuiteSummary> summarise(const std::vector<BenchRun>& runs);

// For a terminal of 100 columns.
std::string table(const SuiteSummary& suite);

}  // namespace drafthorse::cli
