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
#include "bench_suite.h"
#include "console.h"

namespace drafthorse::cli {

struct BenchPlan {
  std::string target;
  std::string draft;
  std::string drafter;  // of contenders that draft; not none
  int context = 0;      // 0: the default
  int threads = 0;      // 0: one per core
  std::string io;
  std::string kv = "f16";
  std::string folder;  // prepare_bench() names one where there is none
  bool resume = false;
  std::string command_line;
  int64_t tokens = 0;
  int rounds = 0;
  std::vector<BenchPrompt> prompts;
  std::vector<Suite> suites;
  std::map<std::string, uint64_t> ram_bytes;  // by budget, as asked for
};

// Whether there is anything to draft with.
bool can_draft(const BenchPlan& plan);

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
