// What `drafthorse bench --batch` compares. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench_prompts.h"

namespace drafthorse::cli {

// One way of running a batch: what `drafthorse batch` is told besides model, requests, sequences and budget.
struct BatchContender {
  std::string name;
  std::string depth;  // tokens drafted per iteration and sequence: auto, a number, or off: no draft is loaded
  std::string regime;

  bool drafts() const { return depth != "off"; }
  std::vector<std::string> flags() const;  // without the draft's file
};

// Empty lists: the default.
struct BatchBenchRequest {
  std::vector<std::string> depths;     // off, auto
  std::vector<std::string> regimes;    // auto
  std::vector<std::string> sequences;  // 4, 16, 64
  std::vector<std::string> budgets;    // 50%
  std::string baseline;
  int64_t requests = 0;  // 0: as many as sequences
  bool has_draft = false;
};

struct BatchGrid {
  // The first regime with every depth, then the others without a draft.
  std::vector<BatchContender> contenders;
  std::string baseline;
  std::vector<int64_t> sequences;
  std::vector<std::string> budgets;
};

// kUsage where something is unknown, or needs a draft and there is none.
Result<BatchGrid> plan_batch_bench(const BatchBenchRequest& request);

// `count` lines as `drafthorse batch --in` takes them: the prompts in turn, each to be written on for `tokens` tokens,
// past any end of text. Their custom_ids sort as they stand, and a request with one is the same whatever `count` is.
std::string requests_text(const std::vector<BenchPrompt>& prompts, int64_t count, int64_t tokens);

}  // namespace drafthorse::cli
