// `drafthorse plan`: memory and speed of a run, before anything is loaded.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "device_flags.h"
#include "engine/engine.h"
#include "plan_batch.h"

namespace drafthorse::cli {

struct PlanFlags {
  std::string target;
  std::string draft;
  std::string ram;
  int32_t context = 0;  // 0: the default
  int threads = 0;
  std::string draft_depth = "auto";
  std::string drafter{kDefaultDrafter};
  std::string kv = "f16";
  DeviceFlags device;
  int prompt_tokens = 128;
  int tokens = 256;
  double acceptance = -1;  // below 0: assumed by the kind of draft
  double skew = -1;        // below 0: assumed
  std::string like;        // statistics of an earlier run; empty: none
  std::string profile;     // a profile's file; empty: this machine's
  bool json = false;
  PlanBatchFlags batch;
};

CLI::App* add_plan_command(CLI::App& app, PlanFlags& flags);

// Returns the process's exit code.
int plan(const PlanFlags& flags);

}  // namespace drafthorse::cli
