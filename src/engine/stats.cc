#include "engine/stats.h"

namespace drafthorse {

LayerCacheStats sum(const std::vector<LayerCacheStats>& layers) {
  LayerCacheStats total;
  for (const LayerCacheStats& layer : layers) {
    total.hits += layer.hits;
    total.in_flight_hits += layer.in_flight_hits;
    total.misses += layer.misses;
    total.evictions += layer.evictions;
    total.prefetched += layer.prefetched;
    total.prefetched_used += layer.prefetched_used;
    total.bytes_demanded += layer.bytes_demanded;
    total.bytes_prefetched += layer.bytes_prefetched;
    total.stall_ns += layer.stall_ns;
  }
  return total;
}

LayerCacheStats SessionStats::decode_total() const { return sum(decode_layers); }

double SessionStats::bytes_read_per_token() const {
  const LayerCacheStats total = decode_total();
  if (generated_tokens == 0) return 0;
  return static_cast<double>(total.bytes_demanded + total.bytes_prefetched) / static_cast<double>(generated_tokens);
}

double SessionStats::hit_rate() const {
  const LayerCacheStats total = decode_total();
  const int64_t demanded = total.hits + total.in_flight_hits + total.misses;
  return demanded == 0 ? 1 : static_cast<double>(total.hits + total.in_flight_hits) / static_cast<double>(demanded);
}

}  // namespace drafthorse
