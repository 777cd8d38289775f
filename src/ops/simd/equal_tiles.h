// Tiles of tokens or rows, of a size known when compiled.
#pragma once

#include <cstdint>

namespace drafthorse::ops::simd {

// function.template operator()<T>(first) with T = count, at most kMost.
template <int kMost, typename Function>
inline void with_count(int64_t count, int64_t first, const Function& function) {
  if (count == kMost) {
    function.template operator()<kMost>(first);
  } else if constexpr (kMost > 1) {
    with_count<kMost - 1>(count, first, function);
  }
}

// function.template operator()<T>(first) for tiles of T <= kMost of `count`, as equal as can be: a tile of one costs
// nearly what one of a few does.
template <int kMost, typename Function>
inline void for_equal_tiles(int64_t count, const Function& function) {
  const int64_t tiles = (count + kMost - 1) / kMost;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = count * i / tiles;
    with_count<kMost>(count * (i + 1) / tiles - first, first, function);
  }
}

}  // namespace drafthorse::ops::simd
