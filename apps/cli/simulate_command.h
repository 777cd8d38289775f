// `drafthorse simulate`: replays a recorded run under other policies, budgets, links, depths and machines.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace drafthorse::cli {

struct SimulateFlags {
  std::string trace;
  std::string policies;      // names with commas between, or all; empty: as recorded
  std::string fast;          // a size; empty: as recorded, or the preset's
  int slots = 0;             // 0: by `fast`
  std::string link;          // a rate; empty: as recorded, or the preset's
  std::string latency;       // a duration; empty: 100us, or the preset's
  std::string expert_bytes;  // a size; empty: the model's
  double draft_ms = -1;      // below 0: as recorded, or the preset's
  double layer_ms = -1;
  double expert_ms = -1;
  std::string depth;  // empty: as recorded
  std::string preset = "this";
  std::string scale;             // empty: the recorded model
  std::string stack = "native";  // or paper
  bool json = false;
};

CLI::App* add_simulate_command(CLI::App& app, SimulateFlags& flags);

// Returns the process's exit code.
int simulate(const SimulateFlags& flags);

}  // namespace drafthorse::cli
