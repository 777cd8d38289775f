// Where the memory budget goes: every byte the process plans to hold, under a tag a person understands.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace drafthorse {

class MemoryLedger {
 public:
  struct Entry {
    std::string tag;
    uint64_t bytes = 0;
  };

  // Adds to the tag's entry; entries keep the order of their first mention.
  void add(std::string_view tag, uint64_t bytes);

  uint64_t total() const;
  uint64_t bytes(std::string_view tag) const;  // 0 where the tag is unknown
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
};

}  // namespace drafthorse
