// What a run's predictions were and what came of them, for end-to-end tests.
#pragma once

#include <algorithm>
#include <vector>

#include "schedule/routing_trace.h"

namespace drafthorse {

// Keeps all cycles.
class KeepingSink final : public RoutingSink {
 public:
  void begin_text() override {}
  void prompt(const TracedPrompt&) override {}
  void agreement(const TracedAgreement&) override {}
  void cycle(const TracedCycle& cycle) override { cycles.push_back(cycle); }

  std::vector<TracedCycle> cycles;
};

struct Agreement {
  int64_t experts = 0;  // used by tokens that were spoken of
  int64_t named = 0;    // of them, among a token's k first
  double share() const { return experts > 0 ? static_cast<double>(named) / static_cast<double>(experts) : 0; }
};

// How many of the experts that tokens used had been ranked among the first k by this source.
inline Agreement agreement_with_truth(const std::vector<TracedCycle>& cycles, ScoreSource source, size_t k) {
  Agreement agreement;
  for (const TracedCycle& cycle : cycles) {
    for (const TracedScore& score : cycle.scores) {
      if (score.source != source || score.token >= cycle.committed) continue;
      const auto first = cycle.used[index(score.layer)].begin() + static_cast<std::ptrdiff_t>(k) * score.token;
      const auto end = score.ranked.begin() + static_cast<std::ptrdiff_t>(std::min(k, score.ranked.size()));
      for (auto one = first; one != first + static_cast<std::ptrdiff_t>(k); ++one) {
        ++agreement.experts;
        agreement.named += std::find(score.ranked.begin(), end, *one) != end ? 1 : 0;
      }
    }
  }
  return agreement;
}

}  // namespace drafthorse
