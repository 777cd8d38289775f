#include "predict/forecast.h"

#include <algorithm>

#include "base/check.h"

namespace drafthorse {

Forecast::Forecast(std::span<const int> experts_by_layer) {
  for (const int experts : experts_by_layer) {
    Layer& layer = layers_.emplace_back();
    layer.need.resize(static_cast<size_t>(experts));
    layer.votes.resize(static_cast<size_t>(experts));
  }
}

void Forecast::clear() {
  for (int i = 0; i < n_layers(); ++i) forget(LayerId{i});
}

void Forecast::forget(LayerId layer) {
  Layer& one = layers_[index(layer)];
  if (!one.covered) return;
  one.covered = false;
  std::fill(one.need.begin(), one.need.end(), 0.0);
  std::fill(one.votes.begin(), one.votes.end(), 0);
}

void Forecast::add(ExpertKey key, double probability) {
  CHECK(probability >= 0 && probability <= 1);
  Layer& layer = layers_[index(key.layer)];
  layer.covered = true;
  double& need = layer.need[index(key.expert)];
  need = 1 - (1 - need) * (1 - probability);
}

void Forecast::set(ExpertKey key, double need) {
  CHECK(need >= 0 && need <= 1);
  layers_[index(key.layer)].covered = true;
  layers_[index(key.layer)].need[index(key.expert)] = need;
}

void Forecast::vote(ExpertKey key) {
  layers_[index(key.layer)].covered = true;
  ++layers_[index(key.layer)].votes[index(key.expert)];
}

}  // namespace drafthorse
