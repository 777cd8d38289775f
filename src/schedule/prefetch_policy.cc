#include "schedule/prefetch_policy.h"

#include <fmt/format.h>

#include <algorithm>

#include "io/extent_reader.h"
#include "plan/cutoff.h"

namespace drafthorse {
namespace {

bool absent(const PrefetchView& view, ExpertKey key) {
  return !view.cache.resident(key) && !view.cache.on_its_way(key);
}

// The layer's experts by falling need, those that are there left out; at most `most`, and only with need above `least`.
std::vector<ExpertKey> likeliest(const PrefetchView& view, LayerId layer, size_t most, double least) {
  std::vector<ExpertKey> keys;
  for (int e = 0; e < view.forecast.n_experts(layer); ++e) {
    const ExpertKey key{layer, ExpertId{e}};
    if (view.forecast.need(key) > least && absent(view, key)) keys.push_back(key);
  }
  std::stable_sort(keys.begin(), keys.end(), [&](const ExpertKey& a, const ExpertKey& b) {
    return view.forecast.need(a) > view.forecast.need(b);
  });
  if (keys.size() > most) keys.resize(most);
  return keys;
}

class None final : public PrefetchPolicy {
 public:
  std::string_view name() const override { return "none"; }
};

class CutoffPrefetch final : public PrefetchPolicy {
 public:
  CutoffPrefetch(bool synchronous, std::optional<int> layers) : synchronous_(synchronous), fixed_(layers) {}

  std::string_view name() const override { return synchronous_ ? "cutoff-sync" : "cutoff"; }

  void begin(const PrefetchView& view) override {
    const int n_layers = view.forecast.n_layers();
    if (fetched_.empty()) fetched_.assign(static_cast<size_t>(n_layers), view.n_expert_used);
    note_fetched();
    CutoffInput input;
    layers_.clear();
    for (int i = 0; i < n_layers; ++i) {
      if (view.forecast.n_experts(LayerId{i}) == 0) continue;
      layers_.push_back(i);
      input.fetched_by_layer.push_back(fetched_[i]);
    }
    input.draft_layers = view.draft_layers;
    input.draft_tokens = view.depth;
    input.draft_s_per_layer = view.draft_layer_s;
    input.load_s_per_expert = view.expert_load_s;
    // The peak without prefetching: what one layer's demand pins.
    input.slots_to_spare = view.cache.slots() - view.n_expert_used * (view.depth + 1);
    cutoff_ = choose_cutoff(input);
    t_comp_ = input.draft_s_per_layer;
    t_io_ = input.load_s_per_expert;
    count_ = std::min<int>(fixed_.value_or(cutoff_.layers), static_cast<int>(layers_.size()));
    ++cycles_;
    layers_taken_ += count_;
    scored_.assign(static_cast<size_t>(n_layers), 0);
    now_.assign(static_cast<size_t>(n_layers), 0);
  }

  void scored(LayerId layer, const PrefetchView& view) override {
    if (scored_.empty()) return;
    scored_[index(layer)] = 1;
    const bool within = count_ > 0 && index(layer) <= layers_[static_cast<size_t>(count_) - 1];
    // One task: all critical experts of the layer that are not there, read as one batch.
    for (int e = 0; e < view.forecast.n_experts(layer); ++e) {
      const ExpertKey key{layer, ExpertId{e}};
      if (view.forecast.votes(key) == 0 || !absent(view, key)) continue;
      now_[index(layer)] += 1;
      if (within) view.cache.prefetch(key);
    }
    if (synchronous_ && within) view.cache.wait_for_prefetches();
  }

  std::string explain() const override {
    const std::string fixed = fixed_ ? fmt::format(" (as asked for; the formula takes {})", cutoff_.layers) : "";
    return fmt::format(
        "{} of {} layers are prefetched while drafting{}: a draft layer takes {:.2f} ms, an expert {:.2f} ms; "
        "loading {:.1f} ms within {:.1f} ms of drafting{}",
        count_, layers_.size(), fixed, 1e3 * t_comp_, 1e3 * t_io_, 1e3 * cutoff_.load_s, 1e3 * cutoff_.drafting_s,
        cutoff_.memory_binds ? ", slots bind" : "");
  }

  std::optional<double> mean_cutoff() const override {
    if (cycles_ == 0) return std::nullopt;
    return static_cast<double>(layers_taken_) / static_cast<double>(cycles_);
  }

 private:
  // k_i: what was fetched, or would have been, of the layers scored last time.
  void note_fetched() {
    constexpr double kGain = 0.2;
    for (size_t i = 0; i < scored_.size(); ++i) {
      if (scored_[i] != 0) fetched_[i] += kGain * (now_[i] - fetched_[i]);
    }
  }

  bool synchronous_;
  std::optional<int> fixed_;
  std::vector<double> fetched_;  // by layer
  std::vector<double> now_;
  std::vector<char> scored_;
  std::vector<int> layers_;  // with experts
  Cutoff cutoff_;
  int count_ = 0;
  int64_t cycles_ = 0;
  int64_t layers_taken_ = 0;  // sum of count_ over the cycles
  double t_comp_ = 0;
  double t_io_ = 0;
};

class NextLayer final : public PrefetchPolicy {
 public:
  std::string_view name() const override { return "next-layer"; }
  void demanded(LayerId layer, const PrefetchView& view) override {
    const LayerId next{index(layer) + 1};
    if (index(next) >= view.forecast.n_layers() || !view.forecast.covers(next)) return;
    for (const ExpertKey key : likeliest(view, next, 1, 0)) view.cache.prefetch(key);
  }
};

class Top final : public PrefetchPolicy {
 public:
  std::string_view name() const override { return "top"; }
  void drafted(const PrefetchView& view) override {
    for (int i = 0; i < view.forecast.n_layers(); ++i) {
      const LayerId layer{i};
      if (!view.forecast.covers(layer)) continue;
      for (const ExpertKey key : likeliest(view, layer, static_cast<size_t>(view.n_expert_used), 0)) {
        view.cache.prefetch(key);
      }
    }
  }
};

class Ahead final : public PrefetchPolicy {
 public:
  std::string_view name() const override { return "ahead"; }
  void drafted(const PrefetchView& view) override { read(0, view); }
  void demanded(LayerId layer, const PrefetchView& view) override { read(index(layer) + 1, view); }

 private:
  static void read(int first, const PrefetchView& view) {
    const int n_layers = view.forecast.n_layers();
    std::vector<std::pair<double, ExpertKey>> wanted;
    for (int i = first; i < n_layers; ++i) {
      if (!view.forecast.covers(LayerId{i})) continue;
      const double nearness = 1 - static_cast<double>(i - first) / n_layers;
      for (const ExpertKey key : likeliest(view, LayerId{i}, static_cast<size_t>(view.n_expert_used), 0)) {
        wanted.emplace_back(view.forecast.need(key) * nearness, key);
      }
    }
    std::stable_sort(wanted.begin(), wanted.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    // As much at a time as one layer uses: the order is better known after the next.
    const size_t most = std::min(wanted.size(), static_cast<size_t>(view.n_expert_used));
    for (size_t i = 0; i < most; ++i) view.cache.prefetch(wanted[i].second);
  }
};

class Deadline final : public PrefetchPolicy {
 public:
  std::string_view name() const override { return "deadline"; }
  void begin(const PrefetchView& view) override { read(view); }
  void scored(LayerId, const PrefetchView& view) override { read(view); }
  void drafted(const PrefetchView& view) override { read(view); }
  void demanded(LayerId, const PrefetchView& view) override { read(view); }
  void working(const PrefetchView& view) override { read(view); }

 private:
  static void read(const PrefetchView& view) {
    // Below it too many reads are in vain. 0.75 against 0.6, replays of 18 texts of three pairs with slots for 20, 35
    // and 50 % of the experts at 1.2, 2.2, 4 and 8 GB/s: 1.8, 3.1, 5.2, 8.5 % less is read, a token takes 0.1 to 0.6 %
    // less.
    constexpr double kLeastNeed = 0.75;
    constexpr double kCertain = 0.8;  // begun too late is still begun earlier than on demand
    constexpr uint64_t kAheadBytes =
        4 * kBackgroundBytesInFlight;  // asked for at a time: what follows is better known later
    for (int i = view.next_layer; i < view.forecast.n_layers(); ++i) {
      const LayerId layer{i};
      if (!view.forecast.covers(layer)) continue;
      // Nothing can be asked for: ranking the layer's experts would be for nothing.
      if (view.cache.prefetch_bytes_pending() >= kAheadBytes) return;
      const double until = view.seconds_until(layer);
      for (const ExpertKey key :
           likeliest(view, layer, static_cast<size_t>(view.forecast.n_experts(layer)), kLeastNeed)) {
        const uint64_t pending = view.cache.prefetch_bytes_pending();
        if (pending >= kAheadBytes) return;
        const double arrives =
            view.bytes_per_s > 0 ? static_cast<double>(pending) / view.bytes_per_s + view.expert_load_s : 0;
        if (arrives > until && view.forecast.need(key) < kCertain) break;
        // Nothing that could make room is worth less: those that follow are worth less still.
        const Prefetched what = view.cache.prefetch(key, Admission::kIfWorthMore);
        if (what == Prefetched::kNoSlot) return;
        if (what == Prefetched::kNotWorth) break;
      }
    }
  }
};

}  // namespace

void PrefetchPolicy::begin(const PrefetchView&) {}
void PrefetchPolicy::scored(LayerId, const PrefetchView&) {}
void PrefetchPolicy::drafted(const PrefetchView&) {}
void PrefetchPolicy::demanded(LayerId, const PrefetchView&) {}
void PrefetchPolicy::working(const PrefetchView&) {}

std::unique_ptr<PrefetchPolicy> make_prefetch_policy(std::string_view name, const PrefetchOptions& options) {
  if (name == "none") return std::make_unique<None>();
  if (name == "cutoff") return std::make_unique<CutoffPrefetch>(false, options.cutoff_layers);
  if (name == "cutoff-sync") return std::make_unique<CutoffPrefetch>(true, options.cutoff_layers);
  if (name == "next-layer") return std::make_unique<NextLayer>();
  if (name == "top") return std::make_unique<Top>();
  if (name == "ahead") return std::make_unique<Ahead>();
  if (name == "deadline") return std::make_unique<Deadline>();
  return nullptr;
}

std::vector<std::string> prefetch_policy_names() {
  return {"none", "cutoff", "cutoff-sync", "next-layer", "top", "ahead", "deadline"};
}

}  // namespace drafthorse
