// Budgets of a bench in bytes: sizes, or shares of a model's routed experts.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "engine/engine.h"

namespace drafthorse::cli {

// For an engine that is only prepared, to see what it takes.
inline constexpr uint64_t kUnlimitedBudget = uint64_t{1} << 50;

struct BudgetSizes {
  uint64_t fixed_bytes = 0;  // all but the target's expert slots
  uint64_t slot_bytes = 0;
  int experts = 0;
};

// Of an engine prepared with all that is not to be at the experts' expense.
BudgetSizes budget_sizes(const Engine& engine);

// "35%": so much of the experts fits beside all else. kUsage for what is neither that nor a size.
Result<uint64_t> budget_bytes(const std::string& budget, const BudgetSizes& sizes);

// kMemory where the machine does not have so much to give.
Status check_available(const std::string& budget, uint64_t bytes);

}  // namespace drafthorse::cli
