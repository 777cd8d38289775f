#include "simulate/belady.h"

#include <algorithm>
#include <limits>
#include <set>
#include <unordered_map>

namespace drafthorse {

BeladyBound belady(std::span<const Demand> demands, int slots, double expert_load_s) {
  constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  // When each demanded expert is demanded next, and all experts by their first use.
  std::unordered_map<ExpertKey, int64_t> next_of;
  std::vector<std::vector<int64_t>> next(demands.size());
  for (size_t d = demands.size(); d-- > 0;) {
    for (const ExpertId expert : demands[d].experts) {
      const auto [found, is_new] = next_of.try_emplace({demands[d].layer, expert}, kNever);
      next[d].push_back(found->second);
      found->second = static_cast<int64_t>(d);
    }
  }
  // What is kept, soonest use first. It begins with what is of use soonest: a bound for any beginning.
  std::set<std::pair<int64_t, ExpertKey>> kept;
  const auto keep_best = [&] {
    while (static_cast<int>(kept.size()) > slots) kept.erase(std::prev(kept.end()));
  };
  for (const auto& [key, first] : next_of) {
    kept.insert({first, key});
    keep_best();
  }

  BeladyBound bound;
  double link_s = 0;
  for (size_t d = 0; d < demands.size(); ++d) {
    const Demand& demand = demands[d];
    int64_t misses = 0;
    for (size_t i = 0; i < demand.experts.size(); ++i) {
      const ExpertKey key{demand.layer, demand.experts[i]};
      if (kept.erase({static_cast<int64_t>(d), key}) == 0) ++misses;
      if (next[d][i] != kNever) kept.insert({next[d][i], key});
    }
    keep_best();
    bound.misses += misses;
    link_s += static_cast<double>(misses) * expert_load_s;
    const double computed = bound.seconds + demand.before_s + demand.experts_s;
    bound.seconds = misses > 0 ? std::max(computed, link_s + demand.one_expert_s) : computed;
  }
  return bound;
}

}  // namespace drafthorse
