#include "devices_command.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "backend/device.h"
#include "base/units.h"
#include "console.h"
#include "output.h"

namespace drafthorse::cli {
namespace {

std::string abilities(const DeviceInfo& info) {
  if (info.kind == DeviceInfo::Kind::kCpu) return "what computes where there is no other";
  std::string text = info.async && info.events ? "copies while it computes" : "copies and computes in turn";
  if (info.pinned) text += ", pinned host memory";
  return text;
}

std::string table(const std::vector<DeviceInfo>& devices) {
  std::string text;
  for (const DeviceInfo& info : devices) {
    text += fmt::format("{:<10} {:<14} {:>11} of {:>11} free  {}\n{:<10} {}\n", printable(info.name),
                        kind_name(info.kind), format_size(info.memory_free), format_size(info.memory_total),
                        printable(info.description), "", abilities(info));
  }
  return text;
}

nlohmann::ordered_json json_of(const std::vector<DeviceInfo>& devices) {
  auto out = nlohmann::ordered_json::array();
  for (const DeviceInfo& info : devices) {
    out.push_back({{"name", info.name},
                   {"description", info.description},
                   {"kind", kind_name(info.kind)},
                   {"memory_free_bytes", info.memory_free},
                   {"memory_total_bytes", info.memory_total},
                   {"async", info.async},
                   {"events", info.events},
                   {"pinned_host_memory", info.pinned}});
  }
  return {{"schema", 1}, {"devices", out}};
}

}  // namespace

CLI::App* add_devices_command(CLI::App& app, DevicesFlags& flags) {
  CLI::App* devices = app.add_subcommand("devices", "List what could compute beside the CPU");
  devices->add_option("--rpc", flags.servers, "a server of ggml's RPC backend: its devices become RPC0 and on")
      ->type_name("HOST:PORT")
      ->check(check_not_empty);
  devices->add_flag("--json", flags.json, "print JSON");
  return devices;
}

int devices(const DevicesFlags& flags) {
  Console console;
  for (const std::string& server : flags.servers) {
    const Status added = add_server(server);
    if (!added.ok()) return fail(console, added);
  }
  const std::vector<DeviceInfo> all = list_devices();
  const Status written = write_output(flags.json ? json_text(json_of(all)) : table(all));
  return written.ok() ? 0 : fail(console, written);
}

}  // namespace drafthorse::cli
