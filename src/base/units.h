// Sizes in bytes, as people write and read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace drafthorse {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;

// "1200M", "1.5G", "512K", "8GiB", "1073741824": a number and a power-of-1024 unit. Usage error otherwise.
Result<uint64_t> parse_size(std::string_view text);

// 1610612736 -> "1.50 GiB".
std::string format_size(uint64_t bytes);

constexpr uint64_t align_up(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}
constexpr uint64_t align_down(uint64_t value, uint64_t alignment) { return value / alignment * alignment; }

}  // namespace drafthorse
