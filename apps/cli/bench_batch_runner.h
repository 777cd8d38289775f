// Carries `drafthorse bench --batch` out: checks what fits first, then run after run of `drafthorse batch`, each in a
// process of its own (bench_runner.h says why).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench_batch_plan.h"
#include "bench_batch_runs.h"
#include "bench_setup.h"
#include "console.h"
#include "plan/batch_optimizer.h"

namespace drafthorse::cli {

// Contenders that are run with one budget and so many sequences.
struct BatchCase {
  std::string budget;
  int64_t sequences = 0;
  std::vector<BatchContender> contenders;  // those that fit
};

struct BatchBenchPlan : BenchSetup {
  std::string profile;   // a file; empty: the kept one
  int64_t requests = 0;  // 0: as many as sequences

  // What follows prepare_batch_bench() fills in.
  BatchGrid grid;
  std::vector<BatchCase> cases;               // those with contenders, by budget, then sequences
  std::map<std::string, uint64_t> ram_bytes;  // by budget, as asked for
  std::optional<BatchPlanInput> model;        // of time; nothing: no profile, or it does not know the models
  std::vector<std::string> notes;             // what is left out, and why

  int64_t requests_of(int64_t sequences) const { return requests > 0 ? requests : sequences; }
};

// kMemory where nothing fits, naming what is missing.
Status prepare_batch_bench(const BatchBenchRequest& request, BatchBenchPlan& plan);

// What it is going to do, for people.
std::string describe(const BatchBenchPlan& plan);

// Runs what `file` does not hold yet and adds it, there and to the folder; then a traced run of two contenders for the
// timelines. kInterrupted after Ctrl-C; the run that was under way is forgotten.
Status run_batch_bench(const BatchBenchPlan& plan, BatchBenchFile& file, Console& console);

}  // namespace drafthorse::cli
