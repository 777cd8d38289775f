// `drafthorse profile`: measures the machine, once, for `plan`.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace drafthorse::cli {

struct ProfileFlags {
  std::string file;
  int threads = 0;
  std::vector<std::string> types;
  double seconds = 0.2;
  bool json = false;
};

CLI::App* add_profile_command(CLI::App& app, ProfileFlags& flags);

// Returns the process's exit code.
int profile(const ProfileFlags& flags);

}  // namespace drafthorse::cli
