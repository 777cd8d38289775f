#include "plan/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/arena.h"
#include "base/units.h"

namespace drafthorse {
namespace {

// What the process holds before anything is planned differs a little from run to run: what is named must do for the
// next one.
constexpr uint64_t kNamedSlack = kMiB;

}  // namespace

uint64_t named_budget(uint64_t least_budget_bytes) { return align_up(least_budget_bytes + kNamedSlack, kMiB); }

Result<MemoryPlan> plan_memory(const MemoryNeeds& needs, uint64_t budget_bytes) {
  const auto slots_bytes = [&](uint64_t slots) { return align_up(slots * needs.slot_bytes, kHugePage); };
  MemoryPlan plan;
  const uint64_t fixed = needs.fixed.total();
  plan.least_budget_bytes = fixed + slots_bytes(static_cast<uint64_t>(needs.least_slots));
  if (budget_bytes < plan.least_budget_bytes) {
    const auto& entries = needs.fixed.entries();
    std::string largest;
    if (!entries.empty()) {
      const auto most = std::max_element(entries.begin(), entries.end(),
                                         [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
      largest = fmt::format("; the largest part is {} with {}", most->tag, format_size(most->bytes));
    }
    return memory_error(fmt::format("a budget of {} is too small: at least --ram {}M is needed{}",
                                    format_size(budget_bytes), named_budget(plan.least_budget_bytes) / kMiB, largest));
  }
  if (needs.slot_bytes > 0) {
    const uint64_t affordable = align_down(budget_bytes - fixed, kHugePage) / needs.slot_bytes;
    plan.slots = static_cast<int>(std::min<uint64_t>(affordable, static_cast<uint64_t>(needs.total_experts)));
  }
  plan.everything_resident = plan.slots == needs.total_experts;
  return plan;
}

}  // namespace drafthorse
