// How fast a model will run here, before anything is loaded. Pure: machine profile, work and memory plan in, seconds
// out.
//
// Routing. Within a text, experts of a layer are used unequally. Their popularity is taken to fall exponentially with
// rank: expert i of E is used by a token with probability
//     p_i = min(1, c exp(-skew (i + 1/2) / E)),     c such that the p_i add up to the experts used per token.
// One number, the skew, gives all else. A window of n tokens demands U(n) = sum 1 - (1 - p_i)^n distinct experts. A
// layer's share C of the slots holds its most popular experts, so that a window misses M(n) = sum over i >= C of
// 1 - (1 - p_i)^n. Slots that a layer's own misses pass through hold nothing for the others: with S slots and L layers
//     C = (S - M(n)) / L,
// which is solved by iteration. kDefaultSkew was measured on the demo pair (bench/plan_against_runs.py shows by how
// much its predictions are off); models trained to balance their experts more strictly have less.
//
// Time. A pass over n tokens is, layer by layer,
//     dense(n) + attention(n) + pipeline(hits, misses) and at the end head(n).
// Matrix products take their weights times the profile's seconds per weight for so many rows, interpolated between
// those measured. In the pipeline the hits are computed at once; miss j is there at latency + j x bytes / disk rate
// after the demand, and is computed when it is there and the processor is free; what is computed while others are read
// takes longer by the profile's slowdown. The number of misses varies: the
// pipeline's time is averaged over its distribution (independent experts). The disk's rate is the profile's for as many
// pieces as the misses have.
//
// Speculation. At depth k a cycle takes k draft(1) + target(k + 1) and makes
//     1 + a_1 + a_1 a_2 + .. tokens,
// a_i being the acceptance of position i, given that it is reached.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "plan/machine_profile.h"

namespace drafthorse {

inline constexpr double kDefaultSkew = 3.8;
// Of draft positions reached, those accepted, where nobody has measured it: the target itself at fewer bits (the demo's
// BF16 target and its Q4_0 copy: 0.95 to 1, by prompt), and another model.
inline constexpr double kSameModelAcceptance = 0.98;
inline constexpr double kOtherModelAcceptance = 0.7;

// A matrix, or several of one type and use.
struct MatrixWork {
  std::string type;
  double weights = 0;  // elements
};

struct LayerWork {
  std::vector<MatrixWork> dense;   // attention projections, router, dense FFN, shared experts
  std::vector<MatrixWork> expert;  // of one routed expert; empty for a dense layer
  int n_expert = 0;
};

struct ModelWork {
  std::vector<LayerWork> layers;
  MatrixWork head;
  int n_expert_used = 0;
  int n_embd = 0;
  int attention_width = 0;    // n_head * mean of key and value elements per head
  uint64_t expert_bytes = 0;  // read for one routed expert
  uint64_t dense_bytes = 0;   // all that is read before the first token
};

struct PredictionInput {
  MachineProfile machine;
  ModelWork target;
  std::optional<ModelWork> draft;
  int slots = 0;  // of the target
  int prompt_tokens = 0;
  int generated_tokens = 0;  // attention reads the context halfway
  int prefill_tokens = 0;    // that a prefill takes at once
  double skew = kDefaultSkew;
  double acceptance = 0;     // at every position
  std::optional<int> depth;  // default: the best
};

// What one pass over a window takes and touches.
struct PassPrediction {
  double seconds = 0;
  double stall_s = 0;    // of it, waiting for experts
  double compute_s = 0;  // the rest
  double memory_s = 0;   // of compute_s, what reading the weights from memory takes at least
  double demanded = 0;   // experts, all layers
  double missed = 0;
};

enum class Bottleneck { kDisk, kMemory, kCompute };

struct SpeedPrediction {
  int depth = 0;
  double tokens_per_s = 0;
  double tokens_per_cycle = 1;
  double cycle_s = 0;
  double draft_s = 0;  // of it
  PassPrediction verify;
  double bytes_per_token = 0;  // read from the disk
  Bottleneck bottleneck = Bottleneck::kCompute;
};

struct Prediction {
  double load_s = 0;                      // before the prompt
  double ttft_s = 0;                      // from the start of reading the prompt to the first token
  double hit_rate = 1;                    // without speculation
  SpeedPrediction plain;                  // depth 0
  std::vector<SpeedPrediction> by_depth;  // 0 first; without a draft only that
  SpeedPrediction best;                   // at the depth asked for, or the fastest
};

// kUsage where the profile lacks a type of the model's.
Result<Prediction> predict(const PredictionInput& input);

// Where a run's hit rate was measured.
struct RoutingShape {
  int layers = 0;     // with experts
  int experts = 0;    // of a layer
  int used = 0;       // by a token
  int slots = 0;      // of all layers
  double window = 1;  // tokens of a pass
};
double expected_hit_rate(const RoutingShape& shape, double skew);
// The skew at which that rate is expected; nullopt where everything fits and a hit rate tells nothing.
std::optional<double> skew_from_hit_rate(const RoutingShape& shape, double hit_rate);

// --- the parts, for tests
// Use of each expert by a token, most popular first. They add up to `used`.
std::vector<double> expert_popularity(int experts, int used, double skew);
// U(n).
double distinct_experts(const std::vector<double>& popularity, int tokens);
// Seconds per weight for that many rows: linear between what was measured, and beyond.
double interpolate(const std::vector<KernelRate>& rates, double tokens);
// Bytes per second with so many pieces of 1 MiB under way.
double disk_rate(const MachineProfile& machine, double pieces);

}  // namespace drafthorse
