// The flags that say how the next token is chosen and where the text ends.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/session.h"

namespace drafthorse::cli {

struct SamplingFlags {
  SamplingOptions options;
  std::optional<uint64_t> seed;
  std::string grammar_file;
  bool json = false;
  std::string accept = "noise";
  std::vector<std::string> stops;
};

void add_sampling_flags(CLI::App& command, SamplingFlags& flags);

// Reads the grammar's file; draws a seed where one is needed and none was given.
Result<SamplingOptions> sampling_options(const SamplingFlags& flags);

// One line for the summary; empty for plain greedy decoding, which needs no words.
std::string describe(const SamplingOptions& options);

}  // namespace drafthorse::cli
