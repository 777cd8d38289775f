#include "engine/device_options.h"

#include <fmt/format.h>

#include <algorithm>

#include "backend/device.h"
#include "base/units.h"
#include "plan/memory_plan.h"

namespace drafthorse {

std::vector<std::string> placement_names() { return {"auto", "fixed"}; }

Result<std::string> resolve_device(const DeviceOptions& options) {
  for (const std::string& server : options.servers) RETURN_IF_ERROR(add_server(server));
  return options.name == "auto" ? choose_device() : options.name;
}

Result<uint64_t> plan_device_memory(const std::string& device, const MemoryLedger& fixed, uint64_t least_slot_bytes,
                                    uint64_t budget_bytes) {
  const uint64_t least = fixed.total() + least_slot_bytes;
  if (budget_bytes >= least) return budget_bytes - fixed.total();
  const auto& entries = fixed.entries();
  const auto most =
      std::max_element(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
  return memory_error(fmt::format(
      "{} of {}'s memory are too little: at least --vram {}M is needed; the largest part is {} with {}",
      format_size(budget_bytes), device, align_up(least, kMiB) / kMiB, most->tag, format_size(most->bytes)));
}

}  // namespace drafthorse
