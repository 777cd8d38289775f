#include "device_flags.h"

#include <fmt/format.h>

#include "base/units.h"
#include "output.h"
#include "suggest.h"

namespace drafthorse::cli {

void add_device_flags(CLI::App& command, DeviceFlags& flags) {
  command
      .add_option("--device", flags.device,
                  "what computes beside the CPU: auto (the first GPU, if there is one), cpu, or a name that drafthorse "
                  "devices lists")
      ->type_name("NAME")
      ->check(check_not_empty)
      ->capture_default_str();
  command.add_option("--vram", flags.vram, "of the device's memory, such as 8G; default: what it has free")
      ->type_name("SIZE")
      ->check(check_not_empty);
  command
      .add_option(
          "--placement", flags.placement,
          "where experts that the device lacks are computed: auto (there or on the CPU, whichever is sooner), or "
          "fixed (there, and the text is the same at any draft depth and number of slots)")
      ->type_name("auto|fixed")
      ->check(one_of(placement_names()))
      ->capture_default_str();
  command.add_option("--rpc", flags.servers, "a server of ggml's RPC backend: its devices become RPC0 and on")
      ->type_name("HOST:PORT")
      ->check(check_not_empty);
}

Result<DeviceOptions> device_options(const DeviceFlags& flags) {
  DeviceOptions options;
  options.name = flags.device;
  options.servers = flags.servers;
  options.placement = flags.placement;
  if (flags.vram.empty()) return options;
  ASSIGN_OR_RETURN(options.vram_bytes, parse_size(flags.vram));
  if (*options.vram_bytes < kMiB && flags.vram.find_first_not_of("0123456789.") == std::string::npos) {
    return usage_error(fmt::format("--vram {0} is {0} bytes; write {0}G or {0}M if that is meant", flags.vram));
  }
  return options;
}

}  // namespace drafthorse::cli
