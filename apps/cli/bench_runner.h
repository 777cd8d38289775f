// Carries a bench out: checks everything first, then run after run, each in a process of its own.
//
// A process each, because memory is what a run is judged by: its peak is the process's, the ledger books the process as
// it stands, and what an engine before it left in the heap would count as the next one's. It also makes each run
// exactly what its command line, kept with it, does.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench_prompts.h"
#include "bench_runs.h"
#include "bench_setup.h"
#include "bench_suite.h"
#include "console.h"

namespace drafthorse::cli {

struct BenchPlan : BenchSetup {
  std::vector<Suite> suites;
  std::map<std::string, uint64_t> ram_bytes;  // by budget, as asked for
};

// From the file, or our own where `path` is empty.
Status read_bench_prompts(const std::string& path, size_t count, std::vector<BenchPrompt>& prompts);

// Fills in the suites and what their budgets are in bytes, and tries each budget, so that nothing is refused later.
Status prepare_bench(const BenchRequest& request, BenchPlan& plan);

// What it is going to do, for people.
std::string describe(const BenchPlan& plan);

// Runs what `file` does not hold yet and adds it, there and to the folder. kInterrupted after Ctrl-C; the run that was
// under way is forgotten.
Status run_bench(const BenchPlan& plan, BenchFile& file, Console& console);

}  // namespace drafthorse::cli
