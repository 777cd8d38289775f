// What a handful of measurements say. Pure.
#pragma once

#include <vector>

namespace drafthorse::cli {

// The middle one, or the mean of the two in the middle. `values` must not be empty.
double median(std::vector<double> values);

// The root of the product, n-th for n values: how ratios are averaged. All must be above 0, and there must be some.
double geometric_mean(const std::vector<double>& values);

// Median and range. All 0 where there are no values.
struct Spread {
  double median = 0;
  double low = 0;
  double high = 0;
};
Spread spread(const std::vector<double>& values);

}  // namespace drafthorse::cli
