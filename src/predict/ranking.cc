#include "predict/ranking.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"

namespace drafthorse {
namespace {

constexpr int kRanksPerUsed = 4;    // the 4k best of k used ones hold nearly all
constexpr double kPriorSeen = 4;    // observations that the guess counts for
constexpr double kMostSeen = 2000;  // older ones fade: texts change

}  // namespace

std::vector<ExpertId> rank_experts(std::span<const float> logits, size_t most) {
  std::vector<ExpertId> order(logits.size());
  for (size_t e = 0; e < order.size(); ++e) order[e] = ExpertId{static_cast<int32_t>(e)};
  const auto value = [&](ExpertId e) {
    const float logit = logits[static_cast<size_t>(index(e))];
    return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
  };
  const auto better = [&](ExpertId a, ExpertId b) { return value(a) != value(b) ? value(a) > value(b) : a < b; };
  most = std::min(most, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(most), order.end(), better);
  order.resize(most);
  return order;
}

RankCalibration::RankCalibration(const RoutingShapes& shapes)
    : used_(shapes.n_expert_used), ranks_(kRanksPerUsed * shapes.n_expert_used) {
  for (const int experts : shapes.experts_by_layer) {
    auto& layer = counts_.emplace_back(static_cast<size_t>(std::min(ranks_, experts)));
    for (size_t rank = 0; rank < layer.size(); ++rank) {
      constexpr double kGuess[] = {0.75, 0.2, 0.05, 0.02};  // by multiples of what a token uses
      layer[rank] = {kGuess[rank / static_cast<size_t>(std::max(1, used_))] * kPriorSeen, kPriorSeen};
    }
  }
}

double RankCalibration::probability(LayerId layer, int rank) const {
  const auto& counts = counts_[index(layer)];
  CHECK(rank >= 0);
  return rank < static_cast<int>(counts.size()) ? counts[rank].used / counts[rank].seen : 0;
}

void RankCalibration::observe(LayerId layer, int rank, bool used) {
  Count& count = counts_[index(layer)][rank];
  count.used += used ? 1 : 0;
  ++count.seen;
  if (count.seen > kMostSeen) {
    count.used /= 2;
    count.seen /= 2;
  }
}

}  // namespace drafthorse
