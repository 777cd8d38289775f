#include "base/ledger.h"

namespace drafthorse {

void MemoryLedger::add(std::string_view tag, uint64_t bytes) {
  for (Entry& entry : entries_) {
    if (entry.tag == tag) {
      entry.bytes += bytes;
      return;
    }
  }
  entries_.push_back({std::string(tag), bytes});
}

uint64_t MemoryLedger::total() const {
  uint64_t sum = 0;
  for (const Entry& entry : entries_) sum += entry.bytes;
  return sum;
}

uint64_t MemoryLedger::bytes(std::string_view tag) const {
  for (const Entry& entry : entries_) {
    if (entry.tag == tag) return entry.bytes;
  }
  return 0;
}

}  // namespace drafthorse
