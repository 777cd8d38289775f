// What both kinds of bench are told alike, and tell each of their runs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench_prompts.h"
#include "console.h"
#include "engine/engine.h"

namespace drafthorse::cli {

struct BenchFlags;

struct BenchSetup {
  std::string target;
  std::string draft;
  std::string drafter;  // of contenders that draft; not none
  int context = 0;      // 0: the default
  int threads = 0;      // 0: one per core
  std::string io;
  std::string kv = "f16";
  std::string folder;  // one is named while the bench is prepared where there is none
  bool resume = false;
  std::string command_line;
  int64_t tokens = 0;
  int rounds = 0;
  std::vector<BenchPrompt> prompts;
};

// All but tokens, rounds and prompts, which have other defaults for each kind.
BenchSetup setup_of(const BenchFlags& flags);

// The file that a contender loads; empty: none.
std::string draft_file(const BenchSetup& setup, bool drafts);
// Whether there is anything to draft with.
bool can_draft(const BenchSetup& setup);

EngineOptions engine_options(const BenchSetup& setup, bool drafts, uint64_t ram_bytes);
// The same for a process: `drafthorse COMMAND ..`
std::vector<std::string> arguments_of(const BenchSetup& setup, const std::string& command, bool drafts,
                                      uint64_t ram_bytes);

// Writes the report and shows the table; texts that differ are errors. what: of which there must be one text. Returns
// the exit code.
int show_results(Console& console, const std::string& folder, const std::string& html, const std::string& table,
                 const std::vector<std::string>& different, std::string_view what);

// The end of a bench whose runs ended so. show: what there is; called where anything is. Returns the exit code.
int end_bench(Console& console, const std::string& folder, const Status& ran, bool anything,
              const std::function<int()>& show);

}  // namespace drafthorse::cli
