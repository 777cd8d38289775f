#include "hits_picture.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/stats.h"

namespace drafthorse::cli {
namespace {

constexpr size_t kMostBars = 32;
constexpr int64_t kWidth = 50;

}  // namespace

std::string hits_picture(const std::vector<LayerCacheStats>& layers) {
  std::string text;
  const size_t shared = (layers.size() + kMostBars - 1) / kMostBars;
  for (size_t first = 0; first < layers.size(); first += shared) {
    const size_t end = std::min(first + shared, layers.size());
    const LayerCacheStats bar =
        sum({layers.begin() + static_cast<std::ptrdiff_t>(first), layers.begin() + static_cast<std::ptrdiff_t>(end)});
    const int64_t demanded = bar.hits + bar.in_flight_hits + bar.misses;
    if (demanded == 0) continue;
    // What is there at all is seen, if only by one mark.
    const auto marks = [&](int64_t count) { return std::max<int64_t>(count > 0 ? 1 : 0, count * kWidth / demanded); };
    const int64_t in_flight = marks(bar.in_flight_hits);
    const int64_t missed = marks(bar.misses);
    const std::string name = end - first == 1 ? fmt::format("{}", first) : fmt::format("{}-{}", first, end - 1);
    text += fmt::format("{:>7} [{:#<{}}{:+<{}}{:.<{}}] {:3.0f} %\n", name, "", kWidth - in_flight - missed, "",
                        in_flight, "", missed, 100.0 * static_cast<double>(bar.hits) / static_cast<double>(demanded));
  }
  if (text.empty()) return text;
  return "experts by layer: # there, + on its way, . missing\n" + text;
}

}  // namespace drafthorse::cli
