// Brings prediction, prefetching and eviction together for one target: what the engine (or a replay) tells goes to the
// predictor, what that expects goes to the prefetch policy and to the cache's eviction policy.
//
// In a cycle, in this order; the layers in theirs:
//   begin_cycle(depth)       `depth` tokens are going to be drafted; 0: verification is next
//   draft_worked()           a layer of the draft was computed
//   scored()                 see Predictor
//   begin_verify(tokens)     the window is complete
//   routed(layer, used)      just before the layer's demand
//   demanded(layer)          just after it
//   worked()                 experts were computed
//   end_cycle(committed)     also after a failure, with 0
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "expert/fast_tier.h"
#include "predict/predictor.h"
#include "schedule/prefetch_policy.h"

namespace drafthorse {

// How good the forecast of a layer was when its demand came. "Predicted" is what at least one token's k best scores
// named (votes), or, of predictors that do not vote, has need of a half at least.
struct LayerForecastStats {
  int64_t windows = 0;
  int64_t predicted = 0;  // experts
  int64_t used = 0;       // experts of windows for which there was a forecast
  int64_t hits = 0;       // predicted and used

  double precision() const { return predicted > 0 ? static_cast<double>(hits) / static_cast<double>(predicted) : 0; }
  double recall() const { return used > 0 ? static_cast<double>(hits) / static_cast<double>(used) : 0; }
};

// Moving averages of what things take.
struct CycleTimes {
  double draft_layer_s = 0;
  double verify_layer_s = 0;  // of a layer with experts, without waiting for them
  double expert_load_s = 0;
  double bytes_per_s = 0;
};

class ExpertScheduler {
 public:
  struct Options {
    RoutingShapes shapes;
    int draft_layers = 0;          // of the draft model, 0 without one
    double bytes_per_s = 0;        // what the storage is known to deliver, 0: to be seen
    bool adaptive_shares = false;  // slots move to the layers that would miss most
  };
  // cache and clock must outlive the scheduler.
  ExpertScheduler(FastTier& cache, std::unique_ptr<Predictor> predictor, std::unique_ptr<PrefetchPolicy> prefetch,
                  const Options& options, const Clock& clock);

  std::vector<ScoreSource> wants() const { return predictor_->wants(); }

  void begin_cycle(int depth);
  void draft_worked();
  void scored(const TokenScores& scores);
  void begin_verify(int tokens);
  void routed(LayerId layer, std::span<const ExpertId> used);
  void demanded(LayerId layer);
  void worked();
  void end_cycle(int committed);

  const std::vector<LayerForecastStats>& stats() const { return stats_; }  // by layer, since reset_stats()
  void reset_stats() { stats_.assign(stats_.size(), {}); }
  const Forecast& forecast() const { return forecast_; }
  const CycleTimes& times() const { return times_; }
  std::string explain() const;
  std::optional<double> mean_cutoff() const { return prefetch_->mean_cutoff(); }

 private:
  PrefetchView view();
  void note(LayerId layer, std::span<const ExpertId> used);
  void limit_background();
  void share_slots_anew();

  FastTier& cache_;
  std::unique_ptr<Predictor> predictor_;
  std::unique_ptr<PrefetchPolicy> prefetch_;
  Options options_;
  const Clock& clock_;
  Forecast forecast_;
  CycleTimes times_;
  double expert_bytes_ = 0;
  std::vector<LayerForecastStats> stats_;

  double window_ = 0;  // tokens of a window, on average
  int depth_ = 0;
  bool drafting_ = false;
  int next_layer_ = 0;
  int draft_layers_done_ = 0;
  int64_t phase_start_ns_ = 0;
  int64_t stall_before_ns_ = 0;  // of all layers, when verification began
  int64_t last_layer_ns_ = 0;
  int tokens_since_sharing_ = 0;
};

}  // namespace drafthorse
