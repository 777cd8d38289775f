#include "sample_statistics.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace drafthorse::cli {

double median(std::vector<double> values) {
  CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

double geometric_mean(const std::vector<double>& values) {
  CHECK(!values.empty());
  double logarithms = 0;
  for (const double value : values) {
    CHECK(value > 0);
    logarithms += std::log(value);
  }
  return std::exp(logarithms / static_cast<double>(values.size()));
}

Spread spread(const std::vector<double>& values) {
  if (values.empty()) return {};
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return {median(values), *low, *high};
}

}  // namespace drafthorse::cli
