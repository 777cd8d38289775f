// What one iteration over many sequences costs: the machine's side of the throughput optimiser. Pure.
//
// SpecMoEOff, arXiv 2508.21706, its cost model and estimator. Seconds and bytes throughout; "token keys" are pairs of a
// token and a KV position that it sees, "keys" KV positions, read once for all tokens of their sequence.
//
// A ModelCost comes from a machine profile and a model's matrices (model_cost), or from a GPU's data sheet
// (simulate/batch_hardware.h). Nothing here knows what a layer is made of.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/status.h"
#include "plan/cost_curve.h"
#include "plan/machine_profile.h"

namespace drafthorse {

struct ModelWork;

// How unevenly texts use a layer's experts: of E experts the i-th most popular is used by a token with probability
//     min(1, c exp(-skew (i + 1/2) / E)),     c such that they add up to the experts used per token.
// Measured on the demo pair. Over many texts at once use is evener: 16 of them, an iteration each, used 12.3 of 16
// experts in the demo's layers and 24.9 of 32 in the fine pair's, which are skews of 2.28 and 2.17; their most popular
// expert is then used by 0.30 of the tokens and was by 0.29 and 0.28.
inline constexpr double kExpertSkew = 3.8;
inline constexpr double kSkewOfMany = 2.2;  // of a dozen texts or more
std::vector<double> expert_shares(int experts, int used, double skew);

struct LayerCost {
  CostCurve dense;   // by tokens: projections, router, shared experts or dense FFN, norms
  CostCurve expert;  // by rows: one routed expert
  int experts = 0;   // 0: a dense layer
  bool operator==(const LayerCost&) const = default;
};

// One layer's attention: the slower of arithmetic and reading.
struct AttentionCost {
  double s_per_token_key = 0;
  double s_per_key = 0;
  double seconds(double token_keys, double keys) const;
};

struct ModelCost {
  std::vector<LayerCost> layers;
  AttentionCost attention;         // every layer's
  CostCurve head;                  // by tokens whose logits are wanted
  std::vector<double> popularity;  // use of each expert of a layer by a token, most popular first; empty: no experts
  double expert_bytes = 0;         // loaded for one expert
  int moe_layers() const;
};

struct ModelCostOptions {
  double skew = kExpertSkew;
  double kv_bytes_per_key = 0;  // of one position, all layers
};

// kUsage where the profile lacks a weight type of the model's. The kernels' figures are for all threads; attention's
// arithmetic is that of one token, which a window of several does better, if anything.
Result<ModelCost> model_cost(const MachineProfile& machine, const ModelWork& model, const ModelCostOptions& options);
// For a machine that nobody has measured: proportions between the parts as on the machines at hand. The runtime learns
// the rest (batch_depth.h).
ModelCost assumed_model_cost(const ModelWork& model, const ModelCostOptions& options);

// What one pass has to do.
struct PassWork {
  double tokens = 0;      // windows and prompt parts together
  double token_keys = 0;  // sum over tokens of what each sees
  double keys = 0;        // sum over sequences of KV positions
  double heads = 0;       // tokens whose logits are wanted
};
// `sequences` windows of `window` tokens behind `mean_keys` positions each.
PassWork window_work(double sequences, double window, double mean_keys);
// A prompt's tokens, from its first to its last.
PassWork prompt_work(double tokens, double prompt_length);
PassWork operator+(const PassWork& a, const PassWork& b);

// Seconds of computing, without any waiting.
struct PassSeconds {
  double dense = 0;
  double attention = 0;
  double experts = 0;
  double head = 0;
  double total() const { return dense + attention + experts + head; }
};
PassSeconds pass_seconds(const ModelCost& cost, const PassWork& work);
// Of these what does not depend on tokens but on being done at all: reading weights.
PassSeconds weight_seconds(const ModelCost& cost, const PassWork& work);

// Of one layer: distinct experts that so many tokens use, and of those the ones that are not among the `resident` that
// memory keeps. Nobody knows which are popular but by their use: kept are those that passes of so many tokens used
// last, as many passes back as there is room for (Che's approximation of a cache). Where all are used that is any of
// them.
double experts_used(const std::vector<double>& popularity, double tokens);
double experts_loaded(const std::vector<double>& popularity, double tokens, double resident);
// Of a layer's experts those are read before its router has spoken that a pass uses with this probability at least.
// Reading one that is used less often delays others more than it helps.
inline constexpr double kForeseenUse = 0.9;
struct ExpertLoads {
  double all = 0;       // experts_loaded
  double foreseen = 0;  // of them
  double variance = 0;  // of their number from one pass to another: what is absent is used or not
};
ExpertLoads expert_loads(const std::vector<double>& popularity, double tokens, double resident);
// How many experts of a layer are used by so many tokens each, on average. Not the mean number of tokens: a curve that
// is flat at first (the products of few rows are hidden by reading the weights) and then steep makes an uneven load
// dearer.
class ExpertRows {
 public:
  ExpertRows(const std::vector<double>& popularity, double tokens);
  double seconds(const CostCurve& expert) const;  // all rows of a layer's experts, by the curve of one

 private:
  std::vector<double> experts_;                  // by tokens, from 1
  std::vector<std::pair<double, double>> many_;  // tokens, experts: of those that many use, the mean
};

// Streaming every expert beats a cache that misses this share of demands once
//     sequences * window >= n_expert / (n_expert_used * miss_rate)
// (SpecMoEOff's cost model, with the window's tokens counted in).
bool streaming_pays(double sequences, double window, int n_expert, int n_expert_used, double miss_rate);

}  // namespace drafthorse
