// From a router's scores to a ranking, and from a rank to the probability that the expert is used.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "predict/predictor.h"

namespace drafthorse {

// Experts by falling score, the lower id of equals; numbers that are none come last. At most `most`.
std::vector<ExpertId> rank_experts(std::span<const float> logits, size_t most);

// How often an expert that some source ranks r-th for a token of some layer is one that the token uses. Begins with a
// guess that a few observations outweigh.
class RankCalibration {
 public:
  explicit RankCalibration(const RoutingShapes& shapes);

  // Ranks that are told apart; beyond them an expert counts as not ranked.
  int ranks() const { return ranks_; }
  double probability(LayerId layer, int rank) const;
  void observe(LayerId layer, int rank, bool used);

 private:
  struct Count {
    double used = 0;
    double seen = 0;
  };
  int used_;
  int ranks_;
  std::vector<std::vector<Count>> counts_;  // [layer][rank]
};

}  // namespace drafthorse
