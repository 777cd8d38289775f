// Pearson's test of counts against probabilities.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace drafthorse {

struct ChiSquare {
  double statistic = 0;
  int degrees = 0;
  bool impossible = false;  // something of probability 0 was seen

  // Roughly standard normal if the counts were drawn with those probabilities (Wilson and Hilferty's cube root).
  double z() const {
    if (impossible) return 1e9;
    if (degrees == 0) return 0;
    const double spread = 2.0 / (9.0 * degrees);
    return (std::cbrt(statistic / degrees) - (1 - spread)) / std::sqrt(spread);
  }
};

// Cells that are expected less than five times are counted together.
inline ChiSquare chi_square(const std::vector<int64_t>& counts, const std::vector<double>& probabilities) {
  constexpr double kLeastExpected = 5;
  ChiSquare result;
  double total = 0;
  for (const int64_t count : counts) total += static_cast<double>(count);
  double rare_expected = 0;
  double rare_count = 0;
  int cells = 0;
  const auto add = [&](double count, double expected) {
    result.statistic += (count - expected) * (count - expected) / expected;
    ++cells;
  };
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = probabilities[i] * total;
    if (probabilities[i] == 0 && counts[i] > 0) result.impossible = true;
    if (expected >= kLeastExpected) {
      add(static_cast<double>(counts[i]), expected);
    } else {
      rare_expected += expected;
      rare_count += static_cast<double>(counts[i]);
    }
  }
  // Too rare together as well: what was seen is only allowed to be rare.
  if (rare_expected >= kLeastExpected) add(rare_count, rare_expected);
  if (rare_expected < kLeastExpected && rare_count > 10 * kLeastExpected) result.impossible = true;
  result.degrees = cells > 0 ? cells - 1 : 0;
  return result;
}

}  // namespace drafthorse
