#include "schedule/routing_recorder.h"

#include <algorithm>

#include "predict/ranking.h"

namespace drafthorse {

RoutingRecorder::RoutingRecorder(const ExpertCache& cache, const RoutingShapes& shapes, RoutingSink& sink,
                                 const Clock& clock)
    : cache_(cache), shapes_(shapes), sink_(sink), clock_(clock) {}

void RoutingRecorder::prompt(std::span<const std::vector<int32_t>> uses, int tokens) {
  sink_.prompt({tokens, {uses.begin(), uses.end()}});
}

LayerCacheStats RoutingRecorder::cache_total() const {
  LayerCacheStats total;
  for (const LayerCacheStats& layer : cache_.stats()) {
    total.hits += layer.hits;
    total.in_flight_hits += layer.in_flight_hits;
    total.misses += layer.misses;
    total.bytes_demanded += layer.bytes_demanded;
    total.bytes_prefetched += layer.bytes_prefetched;
  }
  return total;
}

void RoutingRecorder::begin_cycle(int depth) {
  cycle_ = {};
  cycle_.depth = depth;
  cycle_.used.resize(shapes_.experts_by_layer.size());
  cycle_.times.resize(shapes_.experts_by_layer.size());
  in_cycle_ = true;
  last_ns_ = clock_.now_ns();
}

void RoutingRecorder::scored(const TokenScores& scores, LayerId at) {
  if (!in_cycle_) return;
  const auto ranks = static_cast<size_t>(kRanksPerUsed * shapes_.n_expert_used);
  cycle_.scores.push_back({scores.source, scores.token, scores.layer, at, rank_experts(scores.logits, ranks)});
}

void RoutingRecorder::begin_verify(int tokens) {
  cycle_.tokens = tokens;
  const int64_t now = clock_.now_ns();
  cycle_.draft_s = seconds(now - last_ns_);
  last_ns_ = now;
}

void RoutingRecorder::routed(LayerId layer, std::span<const ExpertId> used) {
  if (!in_cycle_) return;
  layer_ = layer;
  cycle_.used[index(layer)].assign(used.begin(), used.end());
  routed_ns_ = clock_.now_ns();
  cycle_.times[index(layer)].stage_s = seconds(routed_ns_ - last_ns_);
  last_ns_ = routed_ns_;
  layer_stall_ns_ = cache_.stats()[index(layer)].stall_ns;
}

void RoutingRecorder::worked() {
  if (!in_cycle_) return;
  last_ns_ = clock_.now_ns();
  TracedLayerTimes& times = cycle_.times[index(layer_)];
  times.stall_s = seconds(cache_.stats()[index(layer_)].stall_ns - layer_stall_ns_);
  times.experts_s = seconds(last_ns_ - routed_ns_) - times.stall_s;
}

void RoutingRecorder::end_cycle(int committed) {
  const bool whole = in_cycle_ && committed > 0;
  in_cycle_ = false;
  if (!whole) {
    before_ = {};  // counting begins anew once the prompt is read
    sink_.begin_text();
    return;
  }
  cycle_.committed = committed;
  cycle_.head_s = seconds(clock_.now_ns() - last_ns_);
  cycle_.link_bytes_per_s = cache_.load_bytes_per_s();
  const LayerCacheStats now = cache_total();
  cycle_.hits = now.hits - before_.hits;
  cycle_.in_flight_hits = now.in_flight_hits - before_.in_flight_hits;
  cycle_.misses = now.misses - before_.misses;
  cycle_.bytes_read = now.bytes_demanded + now.bytes_prefetched - before_.bytes_demanded - before_.bytes_prefetched;
  before_ = now;
  sink_.cycle(cycle_);
}

}  // namespace drafthorse
