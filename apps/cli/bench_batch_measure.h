// From what a run of `drafthorse batch` wrote to its line in a bench's file, and what was to be expected of it. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench_batch_runs.h"
#include "plan/batch_optimizer.h"

namespace drafthorse::cli {

// A line of --iterations-file.
struct IterationLine {
  int64_t generating = 0;
  int64_t prompt_tokens = 0;
  int64_t cached_positions = 0;
  int64_t drafted_tokens = 0;
  int64_t accepted_tokens = 0;
  IterationParts parts;
};

// kFile where it is no such file.
Result<std::vector<IterationLine>> parse_iterations(const std::string& text);

// The numbers, from 0 on, of those that only generate: bench_batch_runs.h says which.
std::vector<size_t> decoding_iterations(const std::vector<IterationLine>& iterations);

// A run's line out of --stats-file, --iterations-file and the results; what these do not know stands in `of` already.
// kFile where one is not what this version writes, kRuntime where a request was not answered.
Result<BatchBenchRun> with_batch_statistics(BatchBenchRun of, const std::string& stats_text,
                                            const std::vector<IterationLine>& iterations,
                                            const std::string& results_text);

// What the model of time says about the iterations that only generate: for each, told its sequences, their KV lengths,
// how many tokens were drafted and accepted, and the slots there were. Medians, as measured ones are. Nothing where
// there is no such iteration, or no model of what ran: a cache that nothing streams through, or a draft that `input`
// has no costs of (n-grams are taken to cost nothing).
std::optional<IterationParts> predict_parts(const BatchPlanInput& input, const BatchBenchRun& run,
                                            const std::vector<IterationLine>& iterations);

// a so that a + a^2 + .. + a^depth = accepted: how likely a drafted token is accepted, given that those before it were.
double acceptance_of_each(double accepted, int depth);

}  // namespace drafthorse::cli
