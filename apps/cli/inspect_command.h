// `drafthorse inspect`: what a model file is, without loading it.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace drafthorse::cli {

struct InspectFlags {
  std::string file;
  std::string draft_for;
  bool json = false;
};

CLI::App* add_inspect_command(CLI::App& app, InspectFlags& flags);

// Returns the process's exit code.
int inspect(const InspectFlags& flags);

}  // namespace drafthorse::cli
