#include "schedule/scheduler.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/units.h"
#include "io/extent_reader.h"
#include "plan/slot_shares.h"

namespace drafthorse {
namespace {

void average(double& value, double sample) {
  constexpr double kGain = 0.1;
  value = value == 0 ? sample : value + kGain * (sample - value);
}

}  // namespace

ExpertScheduler::ExpertScheduler(FastTier& cache, std::unique_ptr<Predictor> predictor,
                                 std::unique_ptr<PrefetchPolicy> prefetch, const Options& options, const Clock& clock)
    : cache_(cache),
      predictor_(std::move(predictor)),
      prefetch_(std::move(prefetch)),
      options_(options),
      clock_(clock),
      forecast_(options.shapes.experts_by_layer),
      stats_(options.shapes.experts_by_layer.size()) {
  CHECK(predictor_ != nullptr && prefetch_ != nullptr);
  times_.bytes_per_s = options.bytes_per_s;
  int layers = 0;
  for (int i = 0; i < forecast_.n_layers(); ++i) {
    if (forecast_.n_experts(LayerId{i}) == 0) continue;
    expert_bytes_ += static_cast<double>(cache.layout().expert_bytes(LayerId{i}));
    ++layers;
  }
  if (layers > 0) expert_bytes_ /= layers;
  cache_.set_forecast(&forecast_);
}

PrefetchView ExpertScheduler::view() {
  PrefetchView view{cache_, forecast_};
  view.n_expert_used = options_.shapes.n_expert_used;
  view.depth = depth_;
  view.draft_layers = options_.draft_layers;
  view.draft_layer_s = times_.draft_layer_s;
  view.expert_load_s = times_.expert_load_s;
  view.bytes_per_s = times_.bytes_per_s;
  view.next_layer = next_layer_;
  const double drafting_left =
      drafting_ ? std::max(0, depth_ * options_.draft_layers - draft_layers_done_) * times_.draft_layer_s : 0;
  view.seconds_until = [this, drafting_left](LayerId layer) {
    return drafting_left + (index(layer) - next_layer_ + (drafting_ ? 0 : 1)) * times_.verify_layer_s;
  };
  return view;
}

// While no demand is near, more may be under way: the engine looks after reads at stage boundaries only.
void ExpertScheduler::limit_background() {
  constexpr double kMost = 64.0 * 1024 * 1024;
  const double until = view().seconds_until(LayerId{next_layer_});
  const double bytes = std::min(kMost, until * times_.bytes_per_s);
  cache_.set_background_limit(std::max(kBackgroundBytesInFlight, static_cast<uint64_t>(bytes)));
}

void ExpertScheduler::begin_cycle(int depth) {
  depth_ = depth;
  drafting_ = depth > 0;
  next_layer_ = 0;
  draft_layers_done_ = 0;
  phase_start_ns_ = clock_.now_ns();
  if (cache_.load_bytes_per_s() > 0) times_.bytes_per_s = cache_.load_bytes_per_s();
  times_.expert_load_s = times_.bytes_per_s > 0 ? expert_bytes_ / times_.bytes_per_s : 0;
  predictor_->begin_window(forecast_);
  if (!drafting_) return;
  limit_background();
  prefetch_->begin(view());
}

void ExpertScheduler::draft_worked() {
  ++draft_layers_done_;
  cache_.poll();
  limit_background();
  prefetch_->working(view());
}

void ExpertScheduler::scored(const TokenScores& scores) {
  predictor_->scored(scores, forecast_);
  if (drafting_) prefetch_->scored(scores.layer, view());
}

void ExpertScheduler::begin_verify(int tokens) {
  const int64_t now = clock_.now_ns();
  if (drafting_ && draft_layers_done_ > 0) {
    average(times_.draft_layer_s, seconds(now - phase_start_ns_) / draft_layers_done_);
  }
  drafting_ = false;
  phase_start_ns_ = last_layer_ns_ = now;
  stall_before_ns_ = cache_.stall_ns();
  average(window_, tokens);
  cache_.set_window(window_);
  predictor_->drafted(tokens, forecast_);
  cache_.set_background_limit(kBackgroundBytesInFlight);
  prefetch_->drafted(view());
}

void ExpertScheduler::note(LayerId layer, std::span<const ExpertId> used) {
  if (!forecast_.covers(layer)) return;
  const int n = forecast_.n_experts(layer);
  std::vector<char> is_used(static_cast<size_t>(n));
  for (const ExpertId e : used) is_used[static_cast<size_t>(index(e))] = 1;
  LayerForecastStats& stats = stats_[index(layer)];
  ++stats.windows;
  bool votes = false;
  for (int e = 0; e < n; ++e) votes = votes || forecast_.votes({layer, ExpertId{e}}) > 0;
  for (int e = 0; e < n; ++e) {
    const ExpertKey key{layer, ExpertId{e}};
    const bool predicted = votes ? forecast_.votes(key) > 0 : forecast_.need(key) >= 0.5;
    stats.used += is_used[e];
    stats.predicted += predicted ? 1 : 0;
    stats.hits += predicted && is_used[e] != 0 ? 1 : 0;
  }
}

void ExpertScheduler::routed(LayerId layer, std::span<const ExpertId> used) {
  const int64_t now = clock_.now_ns();
  const int64_t stall = cache_.stall_ns();
  if (next_layer_ > 0) average(times_.verify_layer_s, seconds(now - last_layer_ns_ - (stall - stall_before_ns_)));
  last_layer_ns_ = now;
  stall_before_ns_ = stall;
  note(layer, used);
  next_layer_ = index(layer) + 1;
  predictor_->routed(layer, used, forecast_);
  forecast_.forget(layer);
}

void ExpertScheduler::demanded(LayerId layer) { prefetch_->demanded(layer, view()); }

void ExpertScheduler::worked() {
  cache_.poll();
  prefetch_->working(view());
}

void ExpertScheduler::end_cycle(int committed) {
  drafting_ = false;
  predictor_->committed(committed);
  forecast_.clear();
  tokens_since_sharing_ += committed;
  constexpr int kTokensPerSharing = 16;
  if (options_.adaptive_shares && tokens_since_sharing_ >= kTokensPerSharing) share_slots_anew();
}

void ExpertScheduler::share_slots_anew() {
  tokens_since_sharing_ = 0;
  std::vector<std::vector<double>> rates;
  for (int i = 0; i < forecast_.n_layers(); ++i) {
    auto& layer = rates.emplace_back();
    for (int e = 0; e < forecast_.n_experts(LayerId{i}); ++e) {
      layer.push_back(cache_.use_rate({LayerId{i}, ExpertId{e}}));
    }
  }
  cache_.set_shares(share_slots(rates, cache_.slots(), options_.shapes.n_expert_used));
}

std::string ExpertScheduler::explain() const { return prefetch_->explain(); }

}  // namespace drafthorse
