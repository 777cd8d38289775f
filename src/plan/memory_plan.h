// How many expert slots a memory budget buys. Pure.
#pragma once

#include <cstdint>

#include "base/ledger.h"
#include "base/status.h"

namespace drafthorse {

struct MemoryNeeds {
  MemoryLedger fixed;       // everything but the target's expert slots
  uint64_t slot_bytes = 0;  // 0: a dense model
  int total_experts = 0;    // more slots than that serve nothing
  int least_slots = 0;
};

struct MemoryPlan {
  int slots = 0;
  uint64_t least_budget_bytes = 0;  // the smallest budget that would have been accepted
  bool everything_resident = false;
};

// kMemory, naming the least budget and what takes the most, when `budget_bytes` is below it.
Result<MemoryPlan> plan_memory(const MemoryNeeds& needs, uint64_t budget_bytes);

// `least_budget_bytes` as a person is told it: whole MiB, and enough for the next process, which may hold a little more
// than this one before anything is planned.
uint64_t named_budget(uint64_t least_budget_bytes);

}  // namespace drafthorse
