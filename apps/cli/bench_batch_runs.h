// The lines that `drafthorse bench --batch` keeps in runs.jsonl, and what they say together. Pure.
//
// "kind" is "batch-run" (a measurement) or "batch-timeline" (a few iterations of one run's trace).
//
// Decoding alone is judged by iterations that only generate: no part of a prompt rides along, and at least 90 % of the
// most sequences that the run had at once are in it. Of each figure the median over them is kept, of what is predicted
// for them likewise.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench_json.h"
#include "sample_statistics.h"

namespace drafthorse::cli {

// What identifies a run within a bench.
struct BatchRunKey {
  std::string contender;
  std::string budget;     // as asked for: "35%" or a size
  int64_t sequences = 0;  // at once, as asked for
  int64_t round = 0;

  auto operator<=>(const BatchRunKey&) const = default;
};

// Where an iteration's time goes. Medians each, so that they need not add up.
struct IterationParts {
  double seconds = 0;
  double draft_s = 0;
  double attention_s = 0;  // and dense layers: up to the routers
  double experts_s = 0;    // computing them
  double stall_s = 0;      // waiting for them with nothing to compute
  double head_s = 0;       // logits and choices
  double bytes_read = 0;
  double tokens = 0;  // generated
};

// How the parts are called, in the order of an iteration.
struct PartName {
  const char* name;
  double IterationParts::*seconds;
};
inline constexpr PartName kParts[] = {
    {"draft", &IterationParts::draft_s},        {"attention, dense", &IterationParts::attention_s},
    {"experts", &IterationParts::experts_s},    {"waiting", &IterationParts::stall_s},
    {"head, choices", &IterationParts::head_s}, {"iteration", &IterationParts::seconds}};

// Part by part. `all` must not be empty.
IterationParts median_parts(const std::vector<IterationParts>& all);

struct BatchBenchRun {
  BatchRunKey key;
  std::string baseline;  // the contender that the others are held against
  std::string depth;     // as asked for: auto, off, or a number
  std::string regime;
  std::string model;
  std::string draft;    // empty: none was loaded
  std::string drafter;  // as asked for; none: nothing is drafted
  std::string kv;
  std::string machine;
  std::string version;
  std::string bench;    // the command that made the bench
  std::string command;  // the command that makes this run
  int64_t tokens = 0;   // asked for, of each request
  int64_t requests = 0;
  int64_t generated_tokens = 0;
  int64_t prompt_tokens = 0;
  double busy_s = 0;        // in iterations
  double tokens_per_s = 0;  // generated, over busy_s: prompts included
  int64_t iterations = 0;
  int64_t most_sequences = 0;  // at once, as it was
  double acceptance = 0;       // of all drafted tokens
  int64_t slots = 0;
  int64_t experts = 0;
  uint64_t ram_bytes = 0;
  uint64_t peak_rss_bytes = 0;
  std::string text_hash;                 // of all texts
  std::vector<std::string> text_hashes;  // of each, in the order of the requests

  // Of iterations that only generate; nothing where there was none.
  struct Decoding {
    int64_t iterations = 0;
    double tokens_per_s = 0;
    double depth = 0;       // drafted for a sequence, on average
    double acceptance = 0;  // of these
    double kv_length = 0;   // of a sequence, on average
    double computing_share = 0;
    IterationParts parts;
  };
  std::optional<Decoding> decoding;
  // Of the same iterations; nothing where there is no profile of the machine, or no model of what ran.
  std::optional<IterationParts> predicted;
  std::optional<double> link_bytes_per_s;  // the profile's streaming rate
};

// What a run did in a few iterations that only generate.
struct BatchTimeline {
  BatchRunKey key;
  double length_ms = 0;
  std::vector<double> begins_ms;                     // of the iterations
  TimeSpans reads;                                   // at least one under way
  TimeSpans draft, attention, experts, head, stall;  // the engine's thread, side by side
};

// Bytes read per second over the profile's rate; nothing where one is not known.
std::optional<double> disk_share(const BatchBenchRun& run);

nlohmann::ordered_json to_json(const BatchBenchRun& run);
nlohmann::ordered_json to_json(const BatchTimeline& timeline);

// `count` iterations from the one with number `first` (from 0 on) out of a trace of `batch --trace`. kFile where it is
// no such trace, or has fewer.
Result<BatchTimeline> timeline_of_batch_trace(const std::string& trace_text, BatchRunKey key, size_t first,
                                              size_t count);

struct BatchBenchFile {
  std::vector<BatchBenchRun> runs;
  std::vector<BatchTimeline> timelines;
  bool last_line_cut = false;  // it was being written when the bench ended; ignored
};

// Whether the first line is one of these, rather than of a bench of policies.
bool is_batch_bench(const std::string& text);
// kFile, naming the line, where one is none of these.
Result<BatchBenchFile> parse_batch_bench(const std::string& text, const std::string& name);

// Runs that wrote another text for a request than its first run did: one sentence each. Empty: all is well.
std::vector<std::string> differing_texts(const std::vector<BatchBenchRun>& runs);

// A contender with one budget and so many sequences, over the rounds. Medians but for spreads.
struct BatchSummary {
  BatchRunKey key;                        // its round is of no meaning
  const BatchBenchRun* sample = nullptr;  // one of its runs
  size_t runs = 0;
  Spread tokens_per_s;
  Spread speed;           // over the baseline's, by pairs of the same round
  double mean_speed = 0;  // their geometric mean; 0 where there is no pair
  double acceptance = 0;
  uint64_t peak_rss_bytes = 0;  // the most
  std::optional<double> disk_share;
  std::optional<BatchBenchRun::Decoding> decoding;
  std::optional<IterationParts> predicted;
};

struct BatchBenchSummary {
  std::string baseline;
  std::vector<std::string> budgets;     // in their order
  std::vector<int64_t> sequences;       // likewise
  std::vector<std::string> contenders;  // likewise
  int64_t rounds = 0;
  std::vector<BatchSummary> rows;  // by budget, sequences, contender; those that have runs

  const BatchSummary* find(const std::string& contender, const std::string& budget, int64_t at_once) const;
};

// `runs` must outlive the result.
BatchBenchSummary summarise(const std::vector<BatchBenchRun>& runs);

// For a terminal of 100 columns.
std::string table(const BatchBenchSummary& summary);

}  // namespace drafthorse::cli
