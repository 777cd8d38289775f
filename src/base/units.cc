#include "base/units.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

namespace drafthorse {

Result<uint64_t> parse_size(std::string_view text) {
  const auto bad = [&] {
    return usage_error(fmt::format("'{}' is not a size; write for example 1200M, 1.5G or 8GiB", text));
  };
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc() || !(number >= 0)) return bad();
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  uint64_t factor = 1;
  if (!unit.empty()) {
    switch (unit.front()) {
      case 'k':
      case 'K':
        factor = kKiB;
        break;
      case 'm':
      case 'M':
        factor = kMiB;
        break;
      case 'g':
      case 'G':
        factor = kGiB;
        break;
      case 't':
      case 'T':
        factor = 1024 * kGiB;
        break;
      case 'b':
      case 'B':
        break;
      default:
        return bad();
    }
    const std::string_view rest = unit.substr(1);
    const bool plain_bytes = factor == 1;
    if (!(rest.empty() || (!plain_bytes && (rest == "B" || rest == "iB" || rest == "b" || rest == "ib")))) return bad();
  }
  const double bytes = number * static_cast<double>(factor);
  if (bytes > 0x1p62) return bad();
  return static_cast<uint64_t>(std::llround(bytes));
}

std::string format_size(uint64_t bytes) {
  const double value = static_cast<double>(bytes);
  if (bytes >= kGiB) return fmt::format("{:.2f} GiB", value / static_cast<double>(kGiB));
  if (bytes >= kMiB) return fmt::format("{:.1f} MiB", value / static_cast<double>(kMiB));
  if (bytes >= kKiB) return fmt::format("{:.1f} KiB", value / static_cast<double>(kKiB));
  return fmt::format("{} B", bytes);
}

}  // namespace drafthorse
