#include "expert/eviction.h"

#include <algorithm>

namespace drafthorse {
namespace {

// (1 - kUseRateGain) ^ tokens. A choice of victim asks for it once per slot, so the powers are kept.
double decay(int64_t tokens) {
  constexpr int64_t kKept = 1024;  // beyond it less than 1e-18 is left
  static const std::vector<double> powers = [] {
    std::vector<double> values(kKept, 1.0);
    for (size_t i = 1; i < values.size(); ++i) values[i] = values[i - 1] * (1 - kUseRateGain);
    return values;
  }();
  return tokens < kKept ? powers[static_cast<size_t>(tokens)] : 0.0;
}

class Lru final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "lru"; }
  double worth(ExpertKey, const ExpertHistory& history, const EvictionContext&) const override {
    return static_cast<double>(history.last_touch);
  }
};

class Lfu final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "lfu"; }
  double worth(ExpertKey, const ExpertHistory& history, const EvictionContext& context) const override {
    return use_rate_at(history, context.tokens);
  }
};

class NextUse final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "next-use"; }
  double worth(ExpertKey key, const ExpertHistory& history, const EvictionContext& context) const override {
    // An expert never used so far is taken to be used by one token in a hundred.
    constexpr double kLeastRate = 0.01;
    const double rate = std::clamp(use_rate_at(history, context.tokens), kLeastRate, 1.0);
    const int distance = (index(key.layer) - index(context.layer) - 1 + 2 * context.n_layers) % context.n_layers;
    return -(distance + context.n_layers * (1 - rate) / rate);
  }
};

}  // namespace

double use_rate_at(const ExpertHistory& history, int64_t tokens) {
  return history.use_rate * decay(std::max<int64_t>(0, tokens - history.rate_token));
}

void record_uses(ExpertHistory& history, int64_t tokens, int64_t count, int64_t used) {
  const double kept = decay(count);
  const double share = static_cast<double>(used) / static_cast<double>(count);
  history.use_rate = use_rate_at(history, tokens) * kept + share * (1 - kept);
  history.rate_token = tokens + count;
}

std::unique_ptr<EvictionPolicy> make_eviction_policy(std::string_view name) {
  if (name == "lru") return std::make_unique<Lru>();
  if (name == "lfu") return std::make_unique<Lfu>();
  if (name == "next-use") return std::make_unique<NextUse>();
  return nullptr;
}

std::vector<std::string> eviction_policy_names() { return {"lru", "lfu", "next-use"}; }

}  // namespace drafthorse
