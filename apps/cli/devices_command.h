// `drafthorse devices`: what could compute here beside the CPU.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace drafthorse::cli {

struct DevicesFlags {
  std::vector<std::string> servers;
  bool json = false;
};

CLI::App* add_devices_command(CLI::App& app, DevicesFlags& flags);

// Returns the process's exit code.
int devices(const DevicesFlags& flags);

}  // namespace drafthorse::cli
