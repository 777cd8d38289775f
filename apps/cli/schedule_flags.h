// The flags that decide which experts are read ahead and which make room.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace drafthorse::cli {

struct ScheduleFlags {
  std::string policy;
  std::string predictor;
  std::string prefetch;
  std::string eviction;
  std::string cutoff = "auto";
  std::string batched_reads = "on";
};

void add_schedule_flags(CLI::App& command, ScheduleFlags& flags);

ScheduleOptions schedule_options(const ScheduleFlags& flags);

// What to print where one of the flags is "list"; nullopt where none is.
std::optional<std::string> schedule_list(const ScheduleFlags& flags);

}  // namespace drafthorse::cli
