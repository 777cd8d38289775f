// The flags that run and plan share, in the engine's terms.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "engine/engine.h"

namespace drafthorse::cli {

struct EngineFlags {
  const std::string& target;
  const std::string& draft;        // empty: none
  const std::string& ram;          // a size; empty: the default
  int context = 0;                 // 0: the default
  int threads = 0;                 // 0: one per core
  const std::string& draft_depth;  // auto, or a number
  const std::string& drafter;      // one of drafter_names()
};

// --drafter, with `list` for its names.
void add_drafter_flag(CLI::App& command, std::string& drafter);

// kUsage names the flag that makes no sense.
Result<EngineOptions> engine_options(const EngineFlags& flags);

}  // namespace drafthorse::cli
