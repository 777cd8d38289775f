// The pipelines of an iteration as schedules: who waits for whom, and what one iteration takes in the long run. Pure.
//
//   kStreamed         one micro-batch, one computing unit. Per layer attention and dense work, then experts, those that
//                     memory has before the others; a load of a later layer begins as soon as the buffer has room, that
//                     of an expert which is used too seldom to be foreseen (kForeseenUse) when its layer's router has
//                     spoken
//   kTwoMicroBatches  SpecMoEOff (2508.21706, its pipeline): device pre-attention -> activations out -> attention on
//                     the processor -> activations in -> device post-attention -> experts on the device; while one
//                     micro-batch is in attention another is on the device, later layers' experts are loaded meanwhile
//   kOnDemand         layer by layer: a layer's experts are loaded when its routing is known, computed when all are
//                     there, and nothing else goes on meanwhile
// Then the draft makes its tokens, which the device's (or the only) computing unit does; loads of the next iteration's
// first layers go on meanwhile, but for kOnDemand.
//
// Several iterations are scheduled one after the other; the last one's length is what counts.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "plan/event_dag.h"
#include "plan/throughput_model.h"

namespace drafthorse {

enum class Pipeline { kStreamed, kTwoMicroBatches, kOnDemand };

enum class Component { kLoad, kActivations, kDense, kAttention, kExperts, kDraft, kOther };
inline constexpr size_t kComponents = 7;
// "link", "activations", "dense layers", "attention", "experts", "draft", "other".
const char* component_name(Component component);
using SecondsByComponent = std::array<double, kComponents>;

struct Platform {
  double link_bytes_per_s = 0;  // slow tier to fast tier
  // Where the processor that computes also serves the reads, each slows the other down. 0: not the link.
  double link_bytes_per_s_while_computing = 0;
  double compute_slowdown_while_loading = 1;
  // A device: dense layers, experts and the draft run on it, attention on the processor beside it.
  bool device = false;
  double activation_bytes_out = 0;   // per token and layer, queries, keys and values
  double activation_bytes_in = 0;    // the same, attention's result
  double pre_attention_share = 0.6;  // of a layer's dense work, what comes before attention
  AttentionCost prompt_attention{};  // a layer's, of prompts: these are the device's, their keys being there already
};

struct DraftWork {
  double device_s = 0;     // of the whole draft, on the unit that computes
  double processor_s = 0;  // beside it, on the processor: attention of the requests that do not fit on a device
};

struct Iteration {
  Pipeline pipeline = Pipeline::kStreamed;
  PassWork pass;    // of windows
  PassWork prompt;  // that rides along
  int micro_batches = 1;
  double resident_experts = 0;  // of each layer, that memory keeps (experts_loaded)
  double buffer_experts = 0;    // that hold what is loaded, at least a layer's
  DraftWork draft;
  double other_s = 0;  // choosing tokens, bookkeeping: nothing else goes on
};

struct TimelineEvent {
  double start_s = 0;  // since the iteration began
  double end_s = 0;
  std::string unit;
  Component component = Component::kOther;
  int layer = -1;  // -1: no layer's
  int micro_batch = -1;
};

struct IterationPrediction {
  double seconds = 0;
  double target_s = 0;                  // from the end of the draft before to the end of the pass
  SecondsByComponent busy{};            // seconds that each was at work, side by side or not
  SecondsByComponent critical{};        // of `seconds`, what could not have been later: they add up to it
  Component limit = Component::kOther;  // the most of `critical`
  double loaded_bytes = 0;
  std::vector<TimelineEvent> timeline;  // of the last iteration
};

IterationPrediction simulate_iteration(const ModelCost& cost, const Platform& platform, const Iteration& iteration,
                                       bool with_timeline = false);

}  // namespace drafthorse
