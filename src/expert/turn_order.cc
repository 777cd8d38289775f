#include "expert/turn_order.h"

#include <algorithm>

#include "base/check.h"

namespace drafthorse {
namespace {

ExpertId take_out(std::vector<ExpertId>& from, std::vector<ExpertId>::iterator at) {
  const ExpertId expert = *at;
  from.erase(at);
  return expert;
}

}  // namespace

void TurnOrder::begin(const ExpertCache& cache, LayerId layer, std::span<const ExpertId> experts) {
  begin_by_id(experts);
  const auto absent = std::stable_partition(awaited_.begin(), awaited_.end(), [&](ExpertId expert) {
    return cache.resident({layer, expert});
  });
  there_.assign(awaited_.begin(), absent);
  awaited_.erase(awaited_.begin(), absent);
  std::stable_partition(awaited_.begin(), awaited_.end(), [&](ExpertId expert) {
    return cache.on_its_way({layer, expert});
  });
}

void TurnOrder::begin_by_id(std::span<const ExpertId> experts) {
  there_.clear();
  awaited_.assign(experts.begin(), experts.end());
}

ExpertId TurnOrder::take(const ExpertCache& cache, LayerId layer) {
  CHECK(!done());
  if (there_.empty()) return take_out(awaited_, awaited_.begin());
  const auto arrived = std::find_if(awaited_.begin(), awaited_.end(), [&](ExpertId expert) {
    return cache.resident({layer, expert});
  });
  return arrived != awaited_.end() ? take_out(awaited_, arrived) : take_out(there_, there_.begin());
}

}  // namespace drafthorse
