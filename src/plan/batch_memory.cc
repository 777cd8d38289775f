#include "plan/batch_memory.h"

#include <algorithm>

#include "base/check.h"

namespace drafthorse {

BatchMemory divide_batch_memory(const BatchMemoryNeeds& needs) {
  const auto slots_bytes = [&](int slots) { return needs.slot_bytes * static_cast<uint64_t>(slots); };
  CHECK(needs.longest_bytes + slots_bytes(needs.least_slots) <= needs.spare_bytes);
  BatchMemory memory;
  const int streaming =
      std::clamp(2 * needs.experts_per_layer, needs.least_slots, std::max(needs.least_slots, needs.total_experts));
  const uint64_t for_slots = std::min(slots_bytes(streaming), needs.spare_bytes - needs.longest_bytes);
  const uint64_t wanted = std::max(needs.longest_bytes, needs.typical_bytes * static_cast<uint64_t>(needs.sequences));
  memory.sequence_bytes = std::min(wanted, needs.spare_bytes - for_slots);
  if (needs.slot_bytes > 0) {
    const uint64_t fit = (needs.spare_bytes - memory.sequence_bytes) / needs.slot_bytes;
    memory.slots = static_cast<int>(std::min<uint64_t>(fit, static_cast<uint64_t>(needs.total_experts)));
  }
  return memory;
}

}  // namespace drafthorse
