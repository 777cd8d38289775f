// `drafthorse bench`: policies, budgets, depths and prompts over one model, alternating.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace drafthorse::cli {

struct BenchFlags {
  bool batch = false;
  std::string target;
  std::string draft;
  std::string drafter = "auto";
  // Comma-separated; empty: what the suite says.
  std::string suites;
  std::string policies;
  std::string budgets;
  std::string depths;
  std::string cutoffs;
  std::string baseline;
  // Of batches.
  std::string sequences;
  std::string regimes;
  int64_t requests = 0;  // 0: as many as sequences
  std::string profile;   // empty: the kept one
  std::string prompts;   // a file; empty: prompts of our own
  int prompt_count = 0;  // 0: what the suite says
  int64_t tokens = 0;    // 0: likewise
  int rounds = 0;        // 0: likewise
  int context = 0;       // 0: the default
  int threads = 0;       // 0: one per core
  std::string io = "uring";
  std::string kv = "f16";
  std::string out;
  bool resume = false;
  bool dry_run = false;
  std::string report;        // a folder whose report is made anew
  std::string command_line;  // as the user gave it
};

CLI::App* add_bench_command(CLI::App& app, BenchFlags& flags);

// The words of a comma-separated list, each once.
std::vector<std::string> split_list(const std::string& list);

// Returns the process's exit code.
int bench(const BenchFlags& flags);

}  // namespace drafthorse::cli
