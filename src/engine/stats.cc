#include "engine/stats.h"

namespace drafthorse {

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
