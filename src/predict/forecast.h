// What the coming verification is expected to need: for each expert of each layer a probability, and how many of the
// window's tokens are predicted to use it.
//
// A layer is covered from the first word about it until its turn comes; of a layer that is not covered nothing is
// known, which is not the same as a probability of 0. Predictors write it, prefetching and eviction read it.
#pragma once

#include <span>
#include <vector>

#include "base/ids.h"

namespace drafthorse {

class Forecast {
 public:
  // experts_by_layer: 0 for a dense layer.
  explicit Forecast(std::span<const int> experts_by_layer);

  int n_layers() const { return static_cast<int>(layers_.size()); }
  int n_experts(LayerId layer) const { return static_cast<int>(layers_[index(layer)].need.size()); }

  void clear();                // nothing is known of any layer
  void forget(LayerId layer);  // this layer's turn has come: nothing is to be expected of it any more

  // One more token uses the expert with this probability, independently of what was said before.
  void add(ExpertKey key, double probability);
  void set(ExpertKey key, double need);
  // One more token has the expert among its most likely ones.
  void vote(ExpertKey key);

  bool covers(LayerId layer) const { return layers_[index(layer)].covered; }
  double need(ExpertKey key) const { return layers_[index(key.layer)].need[index(key.expert)]; }
  int votes(ExpertKey key) const { return layers_[index(key.layer)].votes[index(key.expert)]; }

 private:
  struct Layer {
    bool covered = false;
    std::vector<double> need;
    std::vector<int> votes;
  };
  std::vector<Layer> layers_;
};

}  // namespace drafthorse
