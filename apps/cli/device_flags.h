// The flags that say what computes beside the CPU, in the engine's terms.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/device_options.h"

namespace drafthorse::cli {

struct DeviceFlags {
  std::string device = "auto";
  std::string vram;
  std::string placement = "auto";
  std::vector<std::string> servers;
};

void add_device_flags(CLI::App& command, DeviceFlags& flags);

// kUsage names the flag that makes no sense.
Result<DeviceOptions> device_options(const DeviceFlags& flags);

}  // namespace drafthorse::cli
