// Log-odds of a probability, as logistic regressions take their evidence.
#pragma once

#include <algorithm>
#include <cmath>

namespace drafthorse {

// What is less likely than `least`, or more than 1 - least, counts as just so: nothing is as sure as it looks.
inline double log_odds(double p, double least) {
  p = std::clamp(p, least, 1 - least);
  return std::log(p / (1 - p));
}

}  // namespace drafthorse
