// When to read ahead, and what: policies behind one seam. They see a forecast and the cache, and hand the cache hints.
//
// In a cycle, in this order:
//   begin()      drafting begins
//   scored()     the forecast of this layer has changed: scores of a router came in
//   drafted()    drafting is over, verification begins
//   demanded()   a layer's demand stands; what follows may be read behind it
//   working()    something was computed; reads went on meanwhile
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "expert/fast_tier.h"
#include "predict/forecast.h"

namespace drafthorse {

// What a policy sees. Times in seconds, by recent measurements; 0 until there are any.
struct PrefetchView {
  PrefetchView(FastTier& of_cache, const Forecast& of_forecast) : cache(of_cache), forecast(of_forecast) {}

  FastTier& cache;
  const Forecast& forecast;
  int n_expert_used = 0;
  int depth = 0;         // tokens being drafted
  int draft_layers = 0;  // of the draft model, 0: none
  double draft_layer_s = 0;
  double expert_load_s = 0;
  double bytes_per_s = 0;
  int next_layer = 0;                            // the first layer whose demand is still to come
  std::function<double(LayerId)> seconds_until;  // its demand
};

class PrefetchPolicy {
 public:
  virtual ~PrefetchPolicy() = default;
  virtual std::string_view name() const = 0;
  virtual void begin(const PrefetchView& view);
  virtual void scored(LayerId layer, const PrefetchView& view);
  virtual void drafted(const PrefetchView& view);
  virtual void demanded(LayerId layer, const PrefetchView& view);
  virtual void working(const PrefetchView& view);
  // The last decision and its numbers, in words; empty where there is nothing to say.
  virtual std::string explain() const { return {}; }
  // Layers read ahead while drafting, mean over the cycles so far; nothing: there were none, or it knows no such layer.
  virtual std::optional<double> mean_cutoff() const { return std::nullopt; }
};

struct PrefetchOptions {
  std::optional<int> cutoff_layers;  // of "cutoff" and "cutoff-sync": so many layers instead of the formula's choice
};

// none:         reads on demand alone.
// cutoff:       SP-MoE (2510.10302): while drafting, each layer's critical experts as soon as they are known, up to the
//               cutoff layer.
// cutoff-sync:  the same without the pipeline: drafting waits for each layer's reads.
// next-layer:   AdapMoE (2408.10284): while a layer is verified, the likeliest expert of the next.
// top:          Specter-like: once all is drafted, of each layer the experts that most tokens name.
// ahead:        MoE-Infinity (2401.14361): after each layer the likeliest of all layers to come, near ones first.
// deadline:     ours: the layer whose demand comes first, its likeliest expert first; while drafting and on through
//               verification; never at the price of what is worth more, never what cannot make it in time.
// nullptr for an unknown name.
std::unique_ptr<PrefetchPolicy> make_prefetch_policy(std::string_view name, const PrefetchOptions& options = {});
std::vector<std::string> prefetch_policy_names();

}  // namespace drafthorse
