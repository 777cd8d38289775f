#include "plan/slot_shares.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

namespace drafthorse {

std::vector<double> share_slots(const std::vector<std::vector<double>>& use_rates, int slots, int least) {
  std::vector<std::vector<double>> sorted = use_rates;
  std::vector<double> shares(use_rates.size());
  std::priority_queue<std::pair<double, size_t>> gains;  // what the layer's next slot saves
  for (size_t layer = 0; layer < sorted.size(); ++layer) {
    auto& rates = sorted[layer];
    std::sort(rates.begin(), rates.end(), std::greater<>());
    const int first = std::min({least, static_cast<int>(rates.size()), slots});
    shares[layer] = first;
    slots -= first;
    if (static_cast<size_t>(first) < rates.size()) gains.emplace(rates[static_cast<size_t>(first)], layer);
  }
  while (slots > 0 && !gains.empty()) {
    const size_t layer = gains.top().second;
    gains.pop();
    --slots;
    const auto next = static_cast<size_t>(++shares[layer]);
    if (next < sorted[layer].size()) gains.emplace(sorted[layer][next], layer);
  }
  return shares;
}

}  // namespace drafthorse
