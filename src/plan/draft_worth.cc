#include "plan/draft_worth.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace drafthorse {
namespace {

// By so much speed without the draft may be overestimated: reads that drafting would have hidden, say.
constexpr double kMargin = 0.05;
constexpr double kEnough = 1.0;      // of evidence
constexpr double kMostOfOne = 0.25;  // that one cycle can add
constexpr double kNewest = 0.3;      // weight of the newest cycle in gain()

}  // namespace

void DraftWorth::observe(double with_s, double without_s) {
  CHECK(with_s > 0 && without_s > 0);
  const double gain = std::log(with_s / without_s);
  gain_ *= std::exp(kNewest * (gain - std::log(gain_)));
  evidence_ = std::max(0.0, evidence_ + std::min(gain - kMargin, kMostOfOne));
}

bool DraftWorth::should_go() const { return evidence_ >= kEnough; }

}  // namespace drafthorse
