// `drafthorse plan --batch`: how many requests at once, how deep to draft, what an iteration takes and what limits it.
// On this machine with a model's file, or on one of SpecMoEOff's machines with its models.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

namespace drafthorse::cli {

struct PlanFlags;

struct PlanBatchFlags {
  bool batch = false;
  int64_t sequences = 0;  // 0: chosen
  int64_t requests = 0;   // in all; 0: more than fit
  std::string hardware;  // empty: this machine
  std::string stack = "native";
};

void add_plan_batch_flags(CLI::App& command, PlanBatchFlags& flags);

// Returns the process's exit code.
int plan_batch(const PlanFlags& flags);

}  // namespace drafthorse::cli
