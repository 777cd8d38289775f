#include "expert/eviction.h"

#include <algorithm>
#include <cmath>

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

class LruLayer final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "lru-layer"; }
  double worth(ExpertKey key, const ExpertHistory& history, const EvictionContext& context) const override {
    constexpr double kElsewhere = 1e12;  // above any tick
    const auto touched = static_cast<double>(history.last_touch);
    // A layer that has its share gives up one of its own; one that has less takes from those that have more.
    const bool takes_own = held(context, context.incoming) + 1 > share(context, context.incoming);
    const bool gives = takes_own ? key.layer == context.incoming : held(context, key.layer) > share(context, key.layer);
    return gives ? touched : touched + kElsewhere;
  }

 private:
  static double held(const EvictionContext& context, LayerId layer) {
    return static_cast<size_t>(index(layer)) < context.held_by_layer.size() ? context.held_by_layer[index(layer)] : 0;
  }
  static double share(const EvictionContext& context, LayerId layer) {
    return static_cast<size_t>(index(layer)) < context.share_by_layer.size() ? context.share_by_layer[index(layer)] : 0;
  }
};

// Layers from the one that is computed to the next time `layer` comes up: 0 for the very next, n - 1 for itself.
int layers_until(LayerId layer, const EvictionContext& context) {
  return (index(layer) - index(context.layer) - 1 + 2 * context.n_layers) % context.n_layers;
}

class StaleFirst final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "stale-first"; }
  double worth(ExpertKey key, const ExpertHistory& history, const EvictionContext& context) const override {
    constexpr double kAhead = 1e12;
    const auto touched = static_cast<double>(history.last_touch);
    return key.layer > context.layer ? touched + kAhead : touched;
  }
};

class Activation final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "activation"; }
  double worth(ExpertKey key, const ExpertHistory& history, const EvictionContext& context) const override {
    // An expert that nobody used yet keeps the order of layers.
    constexpr double kLeast = 1e-3;
    const double later = static_cast<double>(index(key.layer)) / context.n_layers;
    return (use_rate_at(history, context.tokens) + kLeast) * (1 - later);
  }
};

// An expert never used so far is taken to be used by one token in a hundred.
constexpr double kLeastRate = 0.01;

class NextUse final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "next-use"; }
  double worth(ExpertKey key, const ExpertHistory& history, const EvictionContext& context) const override {
    const double rate = std::clamp(use_rate_at(history, context.tokens), kLeastRate, 1.0);
    return -(layers_until(key.layer, context) + context.n_layers * (1 - rate) / rate);
  }
};

// With every expert used in every circle Belady's choice is the one just used. To take another one of its layer costs
// as much now, but then all that was used since stays for nothing: with d of them, d slots less for the rest.
class Circle final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "circle"; }
  double worth(ExpertKey key, const ExpertHistory& history, const EvictionContext& context) const override {
    constexpr double kPerTouch = 1e-12;  // less than a layer for any number of them
    return -layers_until(key.layer, context) - kPerTouch * static_cast<double>(history.last_touch);
  }
};

// What circle keeps ends up as whole layers, next to each other: nothing is to be read while those are computed, and
// the disk holds up the others. Which experts stay does not matter for how many are read where all are used, so every
// layer keeps as many as any other, and within a layer those that stay are spread over the order of computing, too.
class Spread final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "spread"; }
  double worth(ExpertKey key, const ExpertHistory& history, const EvictionContext& context) const override {
    const auto layer = static_cast<size_t>(index(key.layer));
    const double kept = layer < context.kept_by_layer.size() ? context.kept_by_layer[layer] : 0;
    // Layers within half an expert of the mean are equal. Chosen of 0, 0.5, 1 and 2 in replays of the demo's and the
    // fine pair's routing, 16 texts: wider ones wait longer where all experts are used, 0 reads more where they are
    // not.
    const double surplus = std::max(0.0, std::ceil(kept - context.mean_kept - 0.5));
    const double of_token = std::clamp(use_rate_at(history, context.tokens), 0.0, 1.0);
    const double used = used_by_window(of_token, context.window);
    // Decides between experts that about all windows use; popularity is worth more where some do not. In the same
    // replays 0.05 to 0.2 changed what is read by 5 % at most.
    constexpr double kPlace = 0.1;
    const double within = (1 - kPlace) * used + kPlace * place(key.expert);
    return -surplus - (layers_until(key.layer, context) - within) / context.n_layers;
  }

 private:
  // In [0, 1), by multiples of the golden ratio: the ids above any bound are about evenly far apart.
  static double place(ExpertId expert) {
    constexpr double kGoldenRatio = 0.6180339887498949;
    const double at = index(expert) * kGoldenRatio;
    return at - std::floor(at);
  }
};

class DraftGuided final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "draft-guided"; }
  bool reads_next_pass() const override { return true; }
  double worth(ExpertKey key, const ExpertHistory& history, const EvictionContext& context) const override {
    const double of_token = std::clamp(use_rate_at(history, context.tokens), kLeastRate, 1.0);
    const double rate = history.next_pass >= 0 ? history.next_pass : used_by_window(of_token, context.window);
    const bool known = context.forecast != nullptr && context.forecast->covers(key.layer);
    const double needed = known ? context.forecast->need(key) : rate;
    // A mean of times would be all tail: an expert needed now with probability 0.95 and else not for 50 circles counts
    // for more than its mean of 3. So uses are discounted by how far off they are: E[discount ^ time of the next use].
    constexpr double kPerCircle = 0.6;
    constexpr double kLog2PerCircle = -0.7369655941662061;
    const double ahead =
        std::exp2(kLog2PerCircle * static_cast<double>(layers_until(key.layer, context)) / context.n_layers);
    const double later = kPerCircle * rate / (1 - kPerCircle * (1 - rate));  // needed in one of the circles that follow
    return ahead * (needed + (1 - needed) * later);
  }
};

}  // namespace

double use_rate_at(const ExpertHistory& history, int64_t tokens) {
  return history.use_rate * decay(std::max<int64_t>(0, tokens - history.rate_token));
}

double used_by_window(double rate, double window) {
  rate = std::min(rate, 1.0);  // a sum may be above by its rounding
  if (window == 1) return rate;
  // Asked of every slot for every claim: std::pow takes three times as long.
  constexpr double kLeastWindow = 1e-3;  // of none, an expert that is always used would be worth no number
  return 1 - std::exp2(std::max(kLeastWindow, window) * std::log2(1 - rate));
}

void record_uses(ExpertHistory& history, int64_t tokens, int64_t count, int64_t used) {
  const double kept = decay(count);
  const double share = static_cast<double>(used) / static_cast<double>(count);
  history.use_rate = use_rate_at(history, tokens) * kept + share * (1 - kept);
  history.rate_token = tokens + count;
}

namespace {

template <typename Policy>
std::unique_ptr<EvictionPolicy> make() {
  return std::make_unique<Policy>();
}
constexpr std::unique_ptr<EvictionPolicy> (*kMakers[])() = {
    make<Lru>,     make<Lfu>,    make<LruLayer>, make<StaleFirst>,  make<Activation>,
    make<NextUse>, make<Circle>, make<Spread>,   make<DraftGuided>,
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_eviction_policy(std::string_view name) {
  for (const auto maker : kMakers) {
    std::unique_ptr<EvictionPolicy> policy = maker();
    if (policy->name() == name) return policy;
  }
  return nullptr;
}

std::vector<std::string> eviction_policy_names() {
  std::vector<std::string> names;
  for (const auto maker : kMakers) names.emplace_back(maker()->name());
  return names;
}

}  // namespace drafthorse
