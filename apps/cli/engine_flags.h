// The flags that run, batch and plan share, in the engine's terms.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

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
  const std::string& kv;           // f16 or q8_0
};

// What run and batch are told of the models and the machine.
struct ModelFlags {
  std::string target;
  std::string draft;
  std::string ram;
  int context = 0;  // 0: the default
  std::string draft_depth = "auto";
  std::string drafter{kDefaultDrafter};
  std::string kv = "f16";
  std::string io = "uring";
  int threads = 0;
  std::string isa;
};

// --drafter, with `list` for its names.
void add_drafter_flag(CLI::App& command, std::string& drafter);

// --kv
void add_kv_flag(CLI::App& command, std::string& kv);

// Declares them all; they are filled in when the command line is parsed.
void add_model_flags(CLI::App& command, ModelFlags& flags);

// kUsage names the flag that makes no sense.
Result<EngineOptions> engine_options(const EngineFlags& flags);
Result<EngineOptions> engine_options(const ModelFlags& flags);

// The names to print where one of the flags is "list"; nullopt where none is.
std::optional<std::vector<std::string>> model_list(const ModelFlags& flags);

}  // namespace drafthorse::cli
