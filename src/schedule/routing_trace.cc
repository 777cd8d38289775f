#include "schedule/routing_trace.h"

#include <algorithm>

namespace drafthorse {

RoutingShapes TracedModel::shapes() const {
  RoutingShapes shapes;
  for (const TracedLayer& layer : layers) shapes.experts_by_layer.push_back(layer.experts);
  shapes.n_expert_used = n_expert_used;
  return shapes;
}

int TracedModel::total_experts() const {
  int total = 0;
  for (const TracedLayer& layer : layers) total += layer.experts;
  return total;
}

uint64_t TracedModel::slot_bytes() const {
  uint64_t largest = 0;
  for (const TracedLayer& layer : layers) largest = std::max(largest, layer.expert_bytes());
  return largest;
}

double TracedCycle::seconds() const {
  double total = draft_s + head_s;
  for (const TracedLayerTimes& layer : times) total += layer.stage_s + layer.experts_s + layer.stall_s;
  return total;
}

}  // namespace drafthorse
