// How fast a model will run here, before anything is loaded. Pure: machine profile, work and memory plan in, seconds
// out.
//
// Typical texts (typical_text.h) of the model's shape are replayed (replay.h): the engine's own cache, scheduler,
// policies and choice of depth, in virtual time, so that whatever those do is part of the prediction. Computing takes
// what the profile says of the model's matrices (plan/compute_time.h), longer by the profile's slowdown while anything
// is read; memory that is read into for the first time takes the processor's time as well; reads share a link of the
// profile's bandwidth, each with the latency that a single one of its largest reads shows. Of a model with many experts
// some layers are replayed, with their part of the slots and of all times, so that it takes a second or two. Where a
// model has few layers several texts are replayed, each being only a sample, and the mean is taken: whether a draft is
// wrong once or twice in a short text decides how fast it is, so that a median would jump.
//
// A model without routed experts has nothing to replay: at depth k a cycle takes k draft(1) + target(k + 1) and makes
// 1 + a + a^2 + .. tokens, a being the acceptance.
//
// Not foreseen: what drafting from the text itself (--drafter ngram) and with the experts in memory (resident) bring,
// which depends on how much the text repeats itself; a disk whose speed changes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/status.h"
#include "plan/compute_time.h"
#include "plan/machine_profile.h"
#include "simulate/typical_text.h"

namespace drafthorse {

struct PredictionInput {
  MachineProfile machine;
  ModelWork target;
  std::optional<ModelWork> draft;
  bool foreseen = false;     // the draft's routers tell of the target's: it is the same model at fewer bits
  int draft_prompt = 0;      // tokens of the prompt that the draft reads
  int slots = 0;             // of the target
  int prompt_tokens = 0;     // at least one
  int generated_tokens = 0;  // at least one
  int prefill_tokens = 1;    // that a prefill takes at once
  int max_window = 1;        // tokens of a verification
  TextStatistics text;
  std::optional<int> depth;  // default: chosen while running
};

enum class Bottleneck { kDisk, kMemory, kCompute };

// Means over the cycles.
struct SpeedPrediction {
  std::optional<int> depth;  // nothing: chosen while running
  double tokens_per_s = 0;
  double tokens_per_cycle = 1;
  double drafted_per_cycle = 0;
  double cycle_s = 0;
  double draft_s = 0;    // of it
  double stall_s = 0;    // of it, waiting for experts
  double compute_s = 0;  // of it, the rest
  double demanded = 0;   // experts, all layers
  double missed = 0;
  double bytes_per_token = 0;  // read from the disk
  Bottleneck bottleneck = Bottleneck::kCompute;
};

struct Prediction {
  double load_s = 0;                      // before the prompt
  double ttft_s = 0;                      // from the start of reading the prompt to the first token
  double hit_rate = 1;                    // without speculation
  SpeedPrediction plain;                  // depth 0
  std::vector<SpeedPrediction> by_depth;  // 0 first; without a draft only that
  SpeedPrediction best;                   // as a run would go: at the depth asked for, or the depth it chooses
};

// kUsage where the profile lacks a type of the model's; kMemory where the slots' address space cannot be had.
Result<Prediction> predict(const PredictionInput& input);
// Of that only `best`, which takes a part of the time.
Result<SpeedPrediction> predict_speed(const PredictionInput& input);

// The skew of texts that hit as often as an earlier run's did, with so many slots and, on average, windows of so many
// tokens; nullopt where everything fits and a hit rate tells nothing.
Result<std::optional<double>> skew_from_hit_rate(const PredictionInput& input, double hit_rate, int slots,
                                                 double window);

}  // namespace drafthorse
