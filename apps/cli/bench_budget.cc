#include "bench_budget.h"

#include <fmt/format.h>

#include <cmath>

#include "base/arena.h"
#include "base/host_memory.h"
#include "base/units.h"
#include "bench_suite.h"

namespace drafthorse::cli {

BudgetSizes budget_sizes(const Engine& engine) {
  const ExpertLayout& layout = engine.target().model->layout();
  BudgetSizes sizes;
  sizes.slot_bytes = ExpertCache::slot_bytes(layout);
  sizes.experts = layout.total_experts();
  for (const MemoryLedger::Entry& entry : engine.ledger().entries()) {
    if (entry.tag != "expert slots") sizes.fixed_bytes += entry.bytes;
  }
  return sizes;
}

Result<uint64_t> budget_bytes(const std::string& budget, const BudgetSizes& sizes) {
  if (budget.empty() || budget.back() != '%') {
    Result<uint64_t> bytes = parse_size(budget);
    if (bytes.ok()) return bytes;
    return usage_error(fmt::format("--budgets: {}", bytes.status().message()));
  }
  const double percent = parse_percent(budget);
  if (percent < 0) {
    return usage_error(fmt::format("--budgets: '{}' is no percentage above 0 and up to 100", budget));
  }
  const auto slots = static_cast<uint64_t>(std::lround(percent / 100 * sizes.experts));
  // A child may hold a little more than this process before it plans.
  return sizes.fixed_bytes + align_up(slots * sizes.slot_bytes, kHugePage) + kMiB;
}

Status check_available(const std::string& budget, uint64_t bytes) {
  if (bytes <= available_memory_bytes()) return {};
  return memory_error(fmt::format("the budget {} is {}, and this machine has {} to give; leave it out with --budgets",
                                  budget, format_size(bytes), format_size(available_memory_bytes())));
}

}  // namespace drafthorse::cli
